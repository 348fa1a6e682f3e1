//! The documents of a source, one after the other, never a whole file of records in memory.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
};

use serde_json::Value;

use crate::{
    CorpusError, DomainSource, Template,
    source::{Compression, Records, SourceFile},
    template::says,
};

/// A record: its text, or why it has none.
pub(crate) struct Record {
    /// The line or row, from 1.
    pub(crate) line: u64,
    pub(crate) document: Result<Document, String>,
    /// Whether nothing of the file can be read from here on.
    pub(crate) ends_file: bool,
}

impl Record {
    fn new(line: u64, document: Result<Document, String>) -> Self {
        Self {
            line,
            document,
            ends_file: false,
        }
    }

    fn damage(line: u64, reason: String) -> Self {
        Self {
            line,
            document: Err(reason),
            ends_file: true,
        }
    }
}

/// A document's text, in two parts where the first is a prompt.
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

/// What is done with each record; an error ends the reading.
type Each<'a> = &'a mut dyn FnMut(Record) -> Result<(), CorpusError>;

/// Calls `each` with every record of a file. Damage inside a compressed or Parquet file is a record that cannot be used, the
/// file's last.
pub(crate) fn read(
    file: &SourceFile,
    source: &DomainSource,
    each: Each<'_>,
) -> Result<(), CorpusError> {
    if !is_of(file, source) {
        return Ok(());
    }
    let format = file.format();
    match format.records {
        Records::Parquet => read_parquet(file, source, each),
        Records::Lines => read_lines(file, source, format.compression, each),
        Records::WholeFile => read_whole(file, source, format.compression, each),
    }
}

/// Whether a file is read for a source at all: one that is a single document has no field to tell a domain by.
pub(crate) fn is_of(file: &SourceFile, source: &DomainSource) -> bool {
    source.only.is_none() || file.format().records != Records::WholeFile
}

fn open(file: &SourceFile, compression: Compression) -> Result<Box<dyn Read>, CorpusError> {
    let failed = || CorpusError::io("read", &file.path);
    let opened = File::open(&file.path).map_err(failed())?;
    Ok(match compression {
        Compression::None => Box::new(opened),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(opened))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::new(opened).map_err(failed())?;
            // As large as `zstd --long` makes them.
            decoder.window_log_max(31).map_err(failed())?;
            Box::new(decoder)
        }
    })
}

/// An error of reading: of the disk, or of what is compressed.
fn broken(
    file: &SourceFile,
    compression: Compression,
    error: io::Error,
) -> Result<String, CorpusError> {
    match compression {
        Compression::None => Err(CorpusError::io("read", &file.path)(error)),
        _ => Ok(format!("the file is cut or damaged here: {error}")),
    }
}

fn read_whole(
    file: &SourceFile,
    source: &DomainSource,
    compression: Compression,
    each: Each<'_>,
) -> Result<(), CorpusError> {
    let mut bytes = Vec::new();
    let mut reader = open(file, compression)?.take(source.limits.longest + 1);
    let document = match reader.read_to_end(&mut bytes) {
        Ok(_) => text(bytes).and_then(|text| usable(Document { prompt: None, text }, source)),
        Err(error) => return each(Record::damage(1, broken(file, compression, error)?)),
    };
    each(Record::new(1, document))
}

fn read_lines(
    file: &SourceFile,
    source: &DomainSource,
    compression: Compression,
    each: Each<'_>,
) -> Result<(), CorpusError> {
    let mut reader = BufReader::with_capacity(1 << 16, open(file, compression)?);
    let mut bytes = Vec::new();
    // A record is longer than its text; past this the line is not even kept.
    let longest = source
        .limits
        .longest
        .saturating_mul(2)
        .saturating_add(1 << 16);
    for line in 1.. {
        bytes.clear();
        let read = (&mut reader).take(longest).read_until(b'\n', &mut bytes);
        match read {
            Ok(0) => break,
            Ok(count) if count as u64 == longest && bytes.last() != Some(&b'\n') => {
                skip_line(&mut reader).map_err(CorpusError::io("read", &file.path))?;
                let document = Err(over_the_limit(source));
                each(Record::new(line, document))?;
                continue;
            }
            Ok(_) => {}
            Err(error) => {
                return each(Record::damage(line, broken(file, compression, error)?));
            }
        }
        while bytes.last().is_some_and(u8::is_ascii_whitespace) {
            bytes.pop();
        }
        // A blank line is no record.
        if bytes.is_empty() {
            continue;
        }
        let record = text(std::mem::take(&mut bytes)).and_then(|line| parse(&line));
        give(line, record, source, each)?;
    }
    Ok(())
}

fn skip_line(reader: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = reader.fill_buf()?;
        let (end, found) = match buffer.iter().position(|&byte| byte == b'\n') {
            Some(place) => (place + 1, true),
            None => (buffer.len(), buffer.is_empty()),
        };
        reader.consume(end);
        if found {
            return Ok(());
        }
    }
}

#[cfg(feature = "parquet")]
fn read_parquet(
    file: &SourceFile,
    source: &DomainSource,
    each: Each<'_>,
) -> Result<(), CorpusError> {
    use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};

    let opened = File::open(&file.path).map_err(CorpusError::io("read", &file.path))?;
    let damaged = |error: &dyn std::fmt::Display| format!("the file is cut or damaged: {error}");
    let reader = match SerializedFileReader::new(opened) {
        Ok(reader) => reader,
        Err(error) => {
            return each(Record::damage(1, damaged(&error)));
        }
    };
    let rows = match reader.get_row_iter(None) {
        Ok(rows) => rows,
        Err(error) => {
            return each(Record::damage(1, damaged(&error)));
        }
    };
    for (line, row) in (1..).zip(rows) {
        match row {
            Ok(row) => give(line, Ok(crate::parquet::record(&row)), source, each)?,
            Err(error) => {
                return each(Record::damage(line, damaged(&error)));
            }
        }
    }
    Ok(())
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(
    file: &SourceFile,
    _source: &DomainSource,
    _each: Each<'_>,
) -> Result<(), CorpusError> {
    Err(CorpusError::damaged(
        &file.path,
        "is Parquet, which this program was built without (feature `parquet`)",
    ))
}

/// Gives a record of the domain to `each`; those of other domains are passed over.
fn give(
    line: u64,
    record: Result<Value, String>,
    source: &DomainSource,
    each: Each<'_>,
) -> Result<(), CorpusError> {
    if let (Ok(record), Some((path, value))) = (&record, &source.only)
        && !says(record, path, value)
    {
        return Ok(());
    }
    let document = record.and_then(|record| {
        let prompt = source.prompt.as_ref().map(|prompt| prompt.fill(&record));
        let document = Document {
            prompt: prompt.transpose()?,
            text: source.text.fill(&record)?,
        };
        usable(document, source)
    });
    each(Record::new(line, document))
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

/// The text of a source's first record that has one.
pub fn first_document(source: &DomainSource) -> Result<Option<String>, CorpusError> {
    let mut found = None;
    for file in source.expand()? {
        // Reading ends at the first text by way of an error that means no harm.
        let done = read(&file, source, &mut |record| match record.document {
            Ok(document) => {
                found = Some(document.prompt.unwrap_or_default() + &document.text);
                Err(CorpusError::damaged(&file.path, "read enough"))
            }
            Err(_) => Ok(()),
        });
        match found {
            Some(text) => return Ok(Some(text)),
            None => done?,
        }
    }
    Ok(None)
}

/// The values that a field has in the records of a source, sorted.
pub fn field_values(source: &DomainSource, path: &str) -> Result<Vec<String>, CorpusError> {
    let by_field = DomainSource {
        text: Template::field(path),
        prompt: None,
        ..source.clone()
    };
    let mut values = std::collections::BTreeSet::new();
    for file in by_field.expand()? {
        if file.format().records != Records::WholeFile {
            read(&file, &by_field, &mut |record| {
                values.extend(record.document.ok().map(|document| document.text));
                Ok(())
            })?;
        }
    }
    Ok(values.into_iter().collect())
}
