//! The documents of a source, one after the other, never a whole file of records in memory.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
};

use serde_json::Value;

use crate::{CorpusError, DomainSource, source::SourceFile};

/// A record: its text, or why it has none.
pub(crate) struct Record {
    /// The line, from 1.
    pub(crate) line: u64,
    pub(crate) text: Result<String, String>,
}

/// Calls `each` with every record of a file.
pub(crate) fn read(
    file: &SourceFile,
    source: &DomainSource,
    mut each: impl FnMut(Record) -> Result<(), CorpusError>,
) -> Result<(), CorpusError> {
    let failed = || CorpusError::io("read", &file.path);
    if !file.is_jsonl() {
        let bytes = fs::read(&file.path).map_err(failed())?;
        return each(Record {
            line: 1,
            text: text(bytes).and_then(not_empty),
        });
    }
    let mut reader = BufReader::with_capacity(1 << 16, File::open(&file.path).map_err(failed())?);
    let mut bytes = Vec::new();
    for line in 1.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(failed())? == 0 {
            break;
        }
        while bytes.last().is_some_and(u8::is_ascii_whitespace) {
            bytes.pop();
        }
        // A blank line is no record.
        if bytes.is_empty() {
            continue;
        }
        let record = text(std::mem::take(&mut bytes)).and_then(|line| parse(&line));
        if let (Ok(record), Some((path, value))) = (&record, &source.only)
            && field(record, path).as_ref() != Ok(value)
        {
            continue;
        }
        each(Record {
            line,
            text: record
                .and_then(|record| field(&record, &source.text_field))
                .and_then(not_empty),
        })?;
    }
    Ok(())
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn parse(line: &str) -> Result<Value, String> {
    serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))
}

fn field(record: &Value, path: &str) -> Result<String, String> {
    let mut value = record;
    for key in path.split('.') {
        value = value.get(key).ok_or_else(|| format!("no field `{path}`"))?;
    }
    match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(format!("the field `{path}` is not a string")),
    }
}

/// The text of a source's first record that has one.
pub fn first_document(source: &DomainSource) -> Result<Option<String>, CorpusError> {
    let mut found = None;
    for file in source.expand()? {
        // Reading ends at the first text by way of an error that means no harm.
        let done = read(&file, source, |record| match record.text {
            Ok(text) => {
                found = Some(text);
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
        text_field: path.to_owned(),
        ..source.clone()
    };
    let mut values = std::collections::BTreeSet::new();
    for file in by_field.expand()?.iter().filter(|file| file.is_jsonl()) {
        read(file, &by_field, |record| {
            values.extend(record.text.ok());
            Ok(())
        })?;
    }
    Ok(values.into_iter().collect())
}

fn not_empty(text: String) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("empty".to_owned());
    }
    Ok(text)
}
