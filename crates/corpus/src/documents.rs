//! Reads the documents of a source one by one, never holding a whole file of records in memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    ops::ControlFlow,
};

use serde_json::Value;

use crate::{
    CorpusError, DomainSource, FileFormat, format::Compression, quarantine::Unusable,
    source::SourceFile, template::says,
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

/// A document's text, split in two if the first part is a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    pub(crate) prompt: Option<String>,
    pub(crate) text: String,
}

impl Document {
    pub(crate) fn bytes(&self) -> u64 {
        (self.prompt.as_ref().map_or(0, String::len) + self.text.len()) as u64
    }

    /// Equal documents have equal hashes.
    pub(crate) fn hash(&self) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new();
        if let Some(prompt) = &self.prompt {
            hasher.update(prompt.as_bytes());
            hasher.update(&[0xff]);
        }
        hasher.update(self.text.as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        hash
    }
}

/// The callback for each record. A break or an error ends reading.
type Each<'a> = &'a mut dyn FnMut(Record) -> Flow;
/// Whether a break ended reading.
type Flow = Result<ControlFlow<()>, CorpusError>;

/// The largest zstd window that DDK accepts, as a power of two: 128 MiB, the default limit of the zstd tool. The
/// decoder allocates what a file asks for, so a larger window could take all memory.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Calls `each` with every record of a file. Damage inside a compressed or Parquet file counts as an unusable record,
/// the last one of the file.
pub(crate) fn read(file: &SourceFile, source: &DomainSource, each: Each<'_>) -> Flow {
    if !is_of(file, source) {
        return Ok(ControlFlow::Continue(()));
    }
    match file.format.records {
        FileFormat::Parquet => read_parquet(file, source, each),
        FileFormat::Jsonl => read_lines(file, source, each),
        FileFormat::Text => read_whole(file, source, each),
    }
}

/// Whether a file is read for a source at all. A single-document file has no field to filter by.
pub(crate) fn is_of(file: &SourceFile, source: &DomainSource) -> bool {
    source.only.is_none() || file.format.records != FileFormat::Text
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

/// Handles a read error: returns a disk error as an error, and damage in compressed data as a reason.
fn broken(file: &SourceFile, error: io::Error) -> Result<String, CorpusError> {
    match file.format.compression {
        Compression::None => Err(CorpusError::io("read", &file.path)(error)),
        // zstd's message for a window over the limit (ZSTD_error_frameParameter_windowTooLarge).
        Compression::Zstd if error.to_string().contains("too much memory") => Ok(format!(
            "its zstd window is over {} MiB: compress it again without --long or --ultra",
            (1_u64 << ZSTD_WINDOW_LOG) >> 20
        )),
        _ => Ok(format!("the file is cut or damaged here: {error}")),
    }
}

fn read_whole(file: &SourceFile, source: &DomainSource, each: Each<'_>) -> Flow {
    let mut bytes = Vec::new();
    let longest = source.limits.longest;
    let room = longest.saturating_add(1 + UTF8_MARK.len() as u64);
    let document = match open(file)?.take(room).read_to_end(&mut bytes) {
        Ok(_) => whole_text(bytes, source),
        Err(error) => return each(Record::damage(1, broken(file, error)?)),
    };
    each(Record {
        line: 1,
        document: document.map_err(Unusable::from),
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
    usable(Document { prompt: None, text }, source)
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

fn read_lines(file: &SourceFile, source: &DomainSource, each: Each<'_>) -> Flow {
    let mut reader = BufReader::with_capacity(1 << 16, open(file)?);
    let mut bytes = Vec::new();
    // A record is longer than its text. Do not even keep a line beyond this length.
    let longest = source
        .limits
        .longest
        .saturating_mul(2)
        .saturating_add(1 << 16);
    let shortest = source.text.shortest_line();
    let mut consumed: u64 = 0;
    for line in 1.. {
        bytes.clear();
        let read = (&mut reader).take(longest).read_until(b'\n', &mut bytes);
        let mut too_long = false;
        match read {
            Ok(0) => break,
            Ok(count) => {
                consumed += count as u64;
                too_long |= count as u64 == longest && bytes.last() != Some(&b'\n');
            }
            Err(error) => {
                return each(Record::damage(line, broken(file, error)?));
            }
        }
        if line == 1
            && let Err(reason) = strip_mark(&mut bytes)
        {
            return each(Record::damage(line, reason));
        }
        if too_long {
            match skip_line(&mut reader) {
                Ok(skipped) => consumed += skipped,
                Err(error) => return each(Record::damage(line, broken(file, error)?)),
            }
        }
        while bytes.last().is_some_and(u8::is_ascii_whitespace) {
            bytes.pop();
        }
        // A blank line is not a record.
        if bytes.is_empty() {
            continue;
        }
        let record = if too_long {
            Err(over_the_limit(source))
        } else {
            text(std::mem::take(&mut bytes)).and_then(|line| parse(&line))
        };
        let more = match file.format.compression {
            Compression::None => Some(file.bytes.saturating_sub(consumed).div_ceil(shortest)),
            _ => None,
        };
        if give(line, record, more, source, each)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Skips the rest of a line and returns its length in bytes.
fn skip_line(reader: &mut impl BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let (end, found) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(place) => (place + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(end);
        skipped += end as u64;
        if found {
            return Ok(skipped);
        }
    }
}

#[cfg(feature = "parquet")]
fn read_parquet(file: &SourceFile, source: &DomainSource, each: Each<'_>) -> Flow {
    use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};

    let opened = File::open(&file.path).map_err(CorpusError::io("read", &file.path))?;
    let damaged = |error: &dyn std::fmt::Display| format!("the file is cut or damaged: {error}");
    let reader = match SerializedFileReader::new(opened) {
        Ok(reader) => reader,
        Err(error) => {
            return each(Record::damage(1, damaged(&error)));
        }
    };
    let count = reader.metadata().file_metadata().num_rows().unsigned_abs();
    let rows = match reader.get_row_iter(None) {
        Ok(rows) => rows,
        Err(error) => {
            return each(Record::damage(1, damaged(&error)));
        }
    };
    for (line, row) in (1..).zip(rows) {
        let flow = match row {
            Ok(row) => {
                let more = Some(count.saturating_sub(line));
                give(line, Ok(crate::parquet::record(&row)), more, source, each)?
            }
            Err(error) => {
                return each(Record::damage(line, damaged(&error)));
            }
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Number of rows of a Parquet file, from its footer. A file without a footer counts as one unusable record.
#[cfg(feature = "parquet")]
fn parquet_rows(file: &SourceFile) -> Option<u64> {
    use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};

    let reader = SerializedFileReader::new(File::open(&file.path).ok()?);
    Some(reader.map_or(1, |reader| {
        reader.metadata().file_metadata().num_rows().unsigned_abs()
    }))
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(file: &SourceFile, _source: &DomainSource, _each: Each<'_>) -> Flow {
    Err(CorpusError::damaged(
        &file.path,
        "is Parquet, which this program was built without (feature `parquet`)",
    ))
}

#[cfg(not(feature = "parquet"))]
fn parquet_rows(_file: &SourceFile) -> Option<u64> {
    None
}

/// Passes a record of the domain to `each`; skips records of other domains.
fn give(
    line: u64,
    record: Result<Value, String>,
    more: Option<u64>,
    source: &DomainSource,
    each: Each<'_>,
) -> Flow {
    if let (Ok(record), Some((path, value))) = (&record, &source.only)
        && !says(record, path, value)
    {
        return Ok(ControlFlow::Continue(()));
    }
    each(Record {
        line,
        document: record
            .map_err(Unusable::from)
            .and_then(|record| document(&record, source)),
        ends_file: false,
        more,
    })
}

/// Returns the document of a record, or why it has none.
fn document(record: &Value, source: &DomainSource) -> Result<Document, Unusable> {
    let prompt = source.prompt.as_ref().map(|prompt| prompt.fill(record));
    let filled = prompt
        .transpose()
        .and_then(|prompt| Ok((prompt, source.text.fill(record)?)));
    let (prompt, text) = filled.map_err(|reason| Unusable {
        reason,
        fields: record
            .as_object()
            .map(|fields| fields.keys().cloned().collect())
            .unwrap_or_default(),
    })?;
    Ok(usable(Document { prompt, text }, source)?)
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn parse(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))
}

fn usable(document: Document, source: &DomainSource) -> Result<Document, String> {
    if document.text.trim().is_empty() {
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
