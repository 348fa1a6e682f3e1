//! Makes documents of the records of a source, one by one.

use std::iter;

use serde_json::Value;

use crate::{
    CorpusError, DomainSource, FileFormat,
    document::Document,
    format::{IS_LFS, LFS, is_data},
    quarantine::Unusable,
    raw::{Content, Input, More, Raw, Raws, strip_mark},
    records,
    source::SourceFile,
    template::says,
};

/// A record: its document, or why it has none.
pub(crate) struct Record {
    /// The line or row, or the number of an element of a JSON array; from 1.
    pub(crate) line: u64,
    pub(crate) document: Result<Document, Unusable>,
    /// Whether the rest of the file cannot be read.
    pub(crate) ends_file: bool,
    /// Maximum number of usable records that follow in the file; `None` if unknown.
    pub(crate) more: Option<u64>,
}

pub(crate) use crate::raw::Passed;

/// The records of a file, until the disk fails.
type Records<'a> = Box<dyn Iterator<Item = Result<Record, CorpusError>> + Send + 'a>;

/// Reads and parses the records of a file one by one.
pub(crate) fn read<'a>(
    file: &'a SourceFile,
    source: &'a DomainSource,
) -> Result<Records<'a>, CorpusError> {
    let records = raw(file, source, None)?.filter_map(move |raw| match raw {
        Ok(raw) => raw.parse(&[source]).pop().map(|(_, record)| Ok(record)),
        Err(error) => Some(Err(error)),
    });
    Ok(Box::new(records))
}

/// Reads the records of a file one by one, without parsing them. Damage inside a file counts as an unusable record, the
/// last one of the file. Adds the bytes of the file that were read to `passed`.
pub(crate) fn raw<'a>(
    file: &'a SourceFile,
    source: &'a DomainSource,
    passed: Option<&'a Passed>,
) -> Result<Raws<'a>, CorpusError> {
    if !is_of(file, source) {
        return Ok(Box::new(iter::empty()));
    }
    records::read(Input {
        file,
        longest: source.limits.longest,
        passed,
    })
}

/// Whether a file is read for a source at all. A single-document file and a file of token ids have no field to filter
/// by, and no messages. Of Megatron's pairs, only the index is read by itself.
pub(crate) fn is_of(file: &SourceFile, source: &DomainSource) -> bool {
    let has_fields = !matches!(file.format.records, FileFormat::Text | FileFormat::Megatron);
    let is_data = file.format.records == FileFormat::Megatron && is_data(&file.path);
    let needs_fields = source.only.is_some() || source.chat.is_some();
    (!needs_fields || has_fields) && !is_data
}

/// Maximum number of usable records in a file, without reading it; `None` if unknown.
pub(crate) fn most_records(file: &SourceFile, source: &DomainSource) -> Option<u64> {
    if is_of(file, source) {
        records::most_records(file, source.shortest_line())
    } else {
        Some(0)
    }
}

impl More {
    /// Maximum number of usable records that can follow; `None` if unknown.
    fn records(self, source: &DomainSource) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(bytes.div_ceil(source.shortest_line())),
            Self::Records(records) => Some(records),
            Self::Unknown => None,
        }
    }
}

impl Raw {
    /// Parses the record once, and returns it for each domain that it belongs to, with the domain's number.
    pub(crate) fn parse(self, sources: &[&DomainSource]) -> Vec<(usize, Record)> {
        let Self { line, more, .. } = self;
        let record = |number: usize, document| {
            let record = Record {
                line,
                document,
                ends_file: self.ends_file,
                more: more.records(sources[number]),
            };
            (number, record)
        };
        let value = match self.content {
            Content::Json(bytes) => text(bytes).and_then(|text| parse(&text)),
            Content::Row(value) => value(),
            Content::Unusable(reason) => Err(reason),
            // Domains that read a file together have the same limit.
            Content::TooLong => Err(sources
                .first()
                .map_or_else(String::new, |of| over_the_limit(of))),
            // Only one domain reads a file without fields.
            Content::Whole(bytes) => {
                let document = sources.first().map(|source| whole_text(bytes, source));
                return Vec::from_iter(document.map(|of| record(0, of.map_err(Unusable::from))));
            }
            Content::Tokens(ids) => {
                let document = sources.first().map(|source| of_ids(&ids, source));
                return Vec::from_iter(document.map(|of| record(0, of.map_err(Unusable::from))));
            }
        };
        let sources = sources.iter().enumerate();
        let of_source = |(number, source): (usize, &&DomainSource)| {
            let document = match &value {
                Ok(value) if !source.takes(value) => return None,
                Ok(value) => document(value, source),
                Err(reason) => Err(reason.clone().into()),
            };
            Some(record(number, document))
        };
        sources.filter_map(of_source).collect()
    }
}

impl DomainSource {
    /// Whether a record belongs to the domain.
    fn takes(&self, record: &Value) -> bool {
        let only = self.only.as_ref();
        only.is_none_or(|(path, expected)| says(record, path, expected))
    }
}

/// Turns a file's bytes into one document, or returns why it cannot.
fn whole_text(bytes: Vec<u8>, source: &DomainSource) -> Result<Document, String> {
    let is_over = |bytes: &[u8]| bytes.len() as u64 > source.limits.longest;
    let bytes = without_mark(bytes)?;
    if is_over(&bytes) {
        return Err(over_the_limit(source));
    }
    let text = text(bytes)?;
    usable(Document::Text { prompt: None, text }, source)
}

/// Removes a text file's byte-order mark, or returns why the file is no text.
pub(crate) fn without_mark(mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
    strip_mark(&mut bytes)?;
    match bytes.iter().position(|&byte| byte == 0) {
        Some(place) => Err(format!("a binary file, not text: byte {place} is zero")),
        None => Ok(bytes),
    }
}

fn of_ids(ids: &[i64], source: &DomainSource) -> Result<Document, String> {
    let Some(tokens) = &source.tokens else {
        return Err("token ids, but the domain names no tokenizer that made them".to_owned());
    };
    usable(tokens.of_ids(ids, Vec::new())?, source)
}

/// Returns the document of a record, or why it has none.
fn document(record: &Value, source: &DomainSource) -> Result<Document, Unusable> {
    if let Some(chat) = &source.chat {
        return Ok(usable(chat.document(record)?, source)?);
    }
    let of_fields = || {
        if let Some(tokens) = &source.tokens {
            return tokens.of_record(record);
        }
        let prompt = source.prompt.as_ref().map(|prompt| prompt.fill(record));
        let prompt = prompt.transpose()?;
        let text = source.text.fill(record)?;
        Ok(Document::Text { prompt, text })
    };
    let fields = || Some(record.as_object()?.keys().cloned().collect());
    let document = of_fields().map_err(|reason| Unusable {
        reason,
        fields: fields().unwrap_or_default(),
    })?;
    Ok(usable(document, source)?)
}

pub(crate) fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

pub(crate) fn parse(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|error| {
        if line.starts_with(LFS) {
            IS_LFS.to_owned()
        } else {
            format!("not JSON: {error}")
        }
    })
}

fn usable(document: Document, source: &DomainSource) -> Result<Document, String> {
    if document.is_empty() {
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
