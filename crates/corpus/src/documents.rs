//! Reads the documents of a source one by one, never holding a whole file of records in memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    iter,
};

use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};
use serde_json::Value;

use crate::{
    CorpusError, DomainSource, FileFormat, document::Document, format::Compression,
    quarantine::Unusable, source::SourceFile, template::says,
};

/// A record: its text, or why it has none.
pub(crate) struct Record {
    /// The line or row, from 1.
    pub(crate) line: u64,
    pub(crate) document: Result<Document, Unusable>,
    /// Whether the rest of the file cannot be read.
    pub(crate) ends_file: bool,
    /// Maximum number of usable records that follow in the file; `None` if unknown.
    pub(crate) more: Option<u64>,
}

impl Record {
    fn damage(line: u64, reason: String) -> Self {
        Self {
            line,
            document: Err(reason.into()),
            ends_file: true,
            more: Some(0),
        }
    }
}

/// The records of a file, until the disk fails.
type Records<'a> = Box<dyn Iterator<Item = Result<Record, CorpusError>> + 'a>;

/// The largest zstd window that DDK accepts, as a power of two: 128 MiB, the default limit of the zstd tool. The
/// decoder allocates what a file asks for, so a larger window could take all memory.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Reads the records of a file one by one. Damage inside a compressed or Parquet file counts as an unusable record, the
/// last one of the file.
pub(crate) fn read<'a>(
    file: &'a SourceFile,
    source: &'a DomainSource,
) -> Result<Records<'a>, CorpusError> {
    let mut records: Records<'a> = match file.format.records {
        _ if !is_of(file, source) => Box::new(iter::empty()),
        FileFormat::Parquet => read_parquet(file, source)?,
        FileFormat::Jsonl => read_lines(file, source)?,
        FileFormat::Text => Box::new(iter::once(read_whole(file, source))),
    };
    let mut ended = false;
    Ok(Box::new(iter::from_fn(move || {
        let record = if ended { None } else { records.next() };
        ended |= matches!(&record, Some(Ok(record)) if record.ends_file);
        record
    })))
}

/// Whether a file is read for a source at all. A single-document file has no field to filter by, and no messages.
pub(crate) fn is_of(file: &SourceFile, source: &DomainSource) -> bool {
    let needs_records = source.only.is_some() || source.chat.is_some();
    !needs_records || file.format.records != FileFormat::Text
}

/// Maximum number of usable records in a file, without reading it; `None` if unknown.
pub(crate) fn most_records(file: &SourceFile, source: &DomainSource) -> Option<u64> {
    match (file.format.records, file.format.compression) {
        _ if !is_of(file, source) => Some(0),
        (FileFormat::Text, _) => Some(1),
        (FileFormat::Jsonl, Compression::None) => {
            Some(file.bytes.div_ceil(source.text.shortest_line()))
        }
        (FileFormat::Jsonl, _) => None,
        (FileFormat::Parquet, _) => parquet_rows(file),
    }
}

fn open(file: &SourceFile) -> Result<Box<dyn Read>, CorpusError> {
    let failed = || CorpusError::io("read", &file.path);
    let opened = File::open(&file.path).map_err(failed())?;
    Ok(match file.format.compression {
        Compression::None => Box::new(opened),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(opened))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::new(opened).map_err(failed())?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(failed())?;
            Box::new(decoder)
        }
    })
}

/// Handles a read error: returns a disk error as an error, and damage in compressed data as an unusable record.
fn broken(file: &SourceFile, line: u64, error: io::Error) -> Result<Record, CorpusError> {
    let reason = match file.format.compression {
        Compression::None => return Err(CorpusError::io("read", &file.path)(error)),
        // zstd's message for a window over the limit (ZSTD_error_frameParameter_windowTooLarge).
        Compression::Zstd if error.to_string().contains("too much memory") => format!(
            "its zstd window is over {} MiB: compress it again without --long or --ultra",
            (1_u64 << ZSTD_WINDOW_LOG) >> 20
        ),
        _ => format!("the file is cut or damaged here: {error}"),
    };
    Ok(Record::damage(line, reason))
}

fn read_whole(file: &SourceFile, source: &DomainSource) -> Result<Record, CorpusError> {
    let mut bytes = Vec::new();
    let longest = source.limits.longest;
    let room = longest.saturating_add(1 + UTF8_MARK.len() as u64);
    if let Err(error) = open(file)?.take(room).read_to_end(&mut bytes) {
        return broken(file, 1, error);
    }
    Ok(Record {
        line: 1,
        document: whole_text(bytes, source).map_err(Unusable::from),
        ends_file: false,
        more: Some(0),
    })
}

/// Turns a file's bytes into one document, or returns why it cannot.
fn whole_text(mut bytes: Vec<u8>, source: &DomainSource) -> Result<Document, String> {
    strip_mark(&mut bytes)?;
    if let Some(place) = bytes.iter().position(|&byte| byte == 0) {
        return Err(format!("a binary file, not text: byte {place} is zero"));
    }
    if bytes.len() as u64 > source.limits.longest {
        return Err(over_the_limit(source));
    }
    let text = text(bytes)?;
    usable(Document::Text { prompt: None, text }, source)
}

/// The byte-order mark that Windows programs put before UTF-8 text.
const UTF8_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Removes a UTF-8 byte-order mark from the start of a file; refuses the marks of other encodings.
fn strip_mark(bytes: &mut Vec<u8>) -> Result<(), String> {
    if bytes.starts_with(&UTF8_MARK) {
        bytes.drain(..UTF8_MARK.len());
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(
            "UTF-16 by its byte-order mark: convert it to UTF-8, for example with `iconv -f UTF-16 -t UTF-8`"
                .to_owned(),
        );
    }
    Ok(())
}

fn read_lines<'a>(
    file: &'a SourceFile,
    source: &'a DomainSource,
) -> Result<Records<'a>, CorpusError> {
    let mut reader = BufReader::with_capacity(1 << 16, open(file)?);
    // A record is longer than its text. Do not even keep a line beyond this length.
    let limit = source.limits.longest;
    let longest = limit.saturating_mul(2).saturating_add(1 << 16);
    let shortest = source.text.shortest_line();
    let (mut lines, mut consumed) = (1.., 0_u64);
    let mut next = move || {
        for line in &mut lines {
            let mut bytes = Vec::new();
            let (length, too_long) = match read_line(&mut reader, longest, &mut bytes) {
                Ok(read) => read,
                Err(error) => return broken(file, line, error).map(Some),
            };
            if length == 0 {
                break;
            }
            consumed += length;
            if line == 1
                && let Err(reason) = strip_mark(&mut bytes)
            {
                return Ok(Some(Record::damage(line, reason)));
            }
            bytes.truncate(bytes.trim_ascii_end().len());
            // A blank line is not a record.
            if bytes.is_empty() {
                continue;
            }
            let value = if too_long {
                Err(over_the_limit(source))
            } else {
                text(bytes).and_then(|line| parse(&line))
            };
            let most = file.bytes.saturating_sub(consumed).div_ceil(shortest);
            let more = (file.format.compression == Compression::None).then_some(most);
            let record = record(line, value, more, source);
            if record.is_some() {
                return Ok(record);
            }
        }
        Ok(None)
    };
    Ok(Box::new(iter::from_fn(move || next().transpose())))
}

/// Reads a line, but keeps at most `longest` bytes of it. Returns the length of the line in bytes, and whether it is
/// too long.
fn read_line(
    reader: &mut impl BufRead,
    longest: u64,
    line: &mut Vec<u8>,
) -> io::Result<(u64, bool)> {
    let mut length = reader.by_ref().take(longest).read_until(b'\n', line)?;
    let too_long = length as u64 == longest && line.last() != Some(&b'\n');
    if too_long {
        length += reader.skip_until(b'\n')?;
    }
    Ok((length as u64, too_long))
}

fn read_parquet<'a>(
    file: &SourceFile,
    source: &'a DomainSource,
) -> Result<Records<'a>, CorpusError> {
    let opened = File::open(&file.path).map_err(CorpusError::io("read", &file.path))?;
    let damage = |line, error| Record::damage(line, format!("the file is cut or damaged: {error}"));
    let reader = match SerializedFileReader::new(opened) {
        Ok(reader) => reader,
        Err(error) => return Ok(Box::new(iter::once(Ok(damage(1, error))))),
    };
    let count = row_count(&reader);
    let records = (1..).zip(reader).filter_map(move |(line, row)| match row {
        Ok(row) => {
            let more = Some(count.saturating_sub(line));
            record(line, Ok(crate::parquet::record(&row)), more, source)
        }
        Err(error) => Some(damage(line, error)),
    });
    Ok(Box::new(records.map(Ok)))
}

/// Number of rows of a Parquet file, from its footer. A file without a footer counts as one unusable record.
fn parquet_rows(file: &SourceFile) -> Option<u64> {
    let reader = SerializedFileReader::new(File::open(&file.path).ok()?);
    Some(reader.map_or(1, |reader| row_count(&reader)))
}

fn row_count(reader: &SerializedFileReader<File>) -> u64 {
    reader.metadata().file_metadata().num_rows().unsigned_abs()
}

/// Makes a record of a value; `None` if it belongs to another domain.
fn record(
    line: u64,
    value: Result<Value, String>,
    more: Option<u64>,
    source: &DomainSource,
) -> Option<Record> {
    if let (Ok(value), Some((path, expected))) = (&value, &source.only)
        && !says(value, path, expected)
    {
        return None;
    }
    Some(Record {
        line,
        document: value
            .map_err(Unusable::from)
            .and_then(|value| document(&value, source)),
        ends_file: false,
        more,
    })
}

/// Returns the document of a record, or why it has none.
fn document(record: &Value, source: &DomainSource) -> Result<Document, Unusable> {
    if let Some(chat) = &source.chat {
        return Ok(usable(chat.document(record)?, source)?);
    }
    let prompt = source.prompt.as_ref().map(|prompt| prompt.fill(record));
    let fields = || Some(record.as_object()?.keys().cloned().collect());
    let filled = prompt
        .transpose()
        .and_then(|prompt| Ok((prompt, source.text.fill(record)?)));
    let (prompt, text) = filled.map_err(|reason| Unusable {
        reason,
        fields: fields().unwrap_or_default(),
    })?;
    Ok(usable(Document::Text { prompt, text }, source)?)
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn parse(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))
}

fn usable(document: Document, source: &DomainSource) -> Result<Document, String> {
    if document.text().trim().is_empty() {
        Err("empty".to_owned())
    } else if document.bytes() > source.limits.longest {
        Err(over_the_limit(source))
    } else {
        Ok(document)
    }
}

fn over_the_limit(source: &DomainSource) -> String {
    format!("longer than the limit of {} bytes", source.limits.longest)
}
