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
        each(Record {
            line,
            text: text(std::mem::take(&mut bytes))
                .and_then(|line| field(&line, &source.text_field))
                .and_then(not_empty),
        })?;
    }
    Ok(())
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes)
        .map_err(|error| format!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
}

fn field(line: &str, path: &str) -> Result<String, String> {
    let record: Value = serde_json::from_str(line).map_err(|error| format!("not JSON: {error}"))?;
    let mut value = &record;
    for key in path.split('.') {
        value = value.get(key).ok_or_else(|| format!("no field `{path}`"))?;
    }
    match value {
        Value::String(text) => Ok(text.clone()),
        _ => Err(format!("the field `{path}` is not a string")),
    }
}

fn not_empty(text: String) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("empty".to_owned());
    }
    Ok(text)
}
