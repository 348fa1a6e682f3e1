//! Reads tables of text: CSV and TSV, with a row of column names.

use std::{
    io::{self, BufRead, Read},
    iter,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use csv::ByteRecord;
use serde_json::{Map, Value};

use crate::{
    CorpusError,
    raw::{Input, More, Raw, Raws, only},
};

/// Minimum bytes of a row with text: a letter and a line break.
pub(crate) const SHORTEST_ROW: u64 = 2;

/// Stops a reader that passes a limit, because a quote that is not closed would take in the rest of the file.
struct Limited<R> {
    inner: R,
    /// Bytes that may still be read for the current row.
    left: Arc<AtomicU64>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return Err(io::Error::other("row over the limit"));
        }
        let read = self.inner.read(buffer)?;
        self.left
            .store(left.saturating_sub(read as u64), Ordering::Relaxed);
        Ok(read)
    }
}

/// Reads the rows of a table. Each becomes an object with the column names as its keys and strings as its values.
pub(crate) fn read(input: Input<'_>, delimiter: u8) -> Result<Raws<'_>, CorpusError> {
    let mut opened = match input.open_unmarked()? {
        Ok(reader) => reader,
        Err(record) => return Ok(only(Ok(record))),
    };
    let delimiter = match opened.fill_buf() {
        Ok(start) => delimiter_of(start, delimiter),
        Err(error) => return Ok(only(input.broken(1, error))),
    };
    let longest = input.longest_record();
    let left = Arc::new(AtomicU64::new(longest));
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(delimiter)
        .from_reader(Limited {
            inner: opened,
            left: Arc::clone(&left),
        });
    let (mut columns, mut has_crlf): (Option<Arc<[String]>>, bool) = (None, false);
    let mut next = move || {
        loop {
            left.store(longest, Ordering::Relaxed);
            let start = reader.position().line();
            let mut row = ByteRecord::new();
            match reader.read_byte_record(&mut row) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(_) if left.load(Ordering::Relaxed) == 0 => {
                    let reason = format!(
                        "a row is longer than {longest} bytes: is a quote before it not closed?"
                    );
                    return Ok(Some(Raw::damage(start, reason)));
                }
                Err(error) => {
                    let error = io::Error::other(error.to_string());
                    return input.broken(start, error).map(Some);
                }
            }
            // The parser counts a CRLF when it begins the next row, so the place of that row is a line too low.
            let line = row.position().map_or(start, csv::Position::line) + u64::from(has_crlf);
            let Some(columns) = &columns else {
                has_crlf = reader.position().line() == line;
                match names(&row, delimiter) {
                    Ok(names) => columns = Some(names.into()),
                    Err(reason) => return Ok(Some(Raw::damage(line, reason))),
                }
                continue;
            };
            let more = match input.left(reader.position().byte()) {
                Some(left) => More::Records(left.div_ceil(SHORTEST_ROW)),
                None => More::Unknown,
            };
            let columns = Arc::clone(columns);
            let bytes = row.as_slice().len();
            return Ok(Some(Raw::row(line, bytes, more, move || {
                value(&columns, &row)
            })));
        }
    };
    Ok(Box::new(iter::from_fn(move || next().transpose())))
}

/// Returns the delimiter of a table. Where a comma is the decimal mark, spreadsheets separate the columns of a `.csv`
/// file with semicolons.
fn delimiter_of(start: &[u8], of_format: u8) -> u8 {
    let header = start
        .split(|byte| *byte == b'\n')
        .next()
        .unwrap_or_default();
    let has = |delimiter: &u8| header.contains(delimiter);
    if of_format == b',' && has(&b';') && !has(&b',') {
        b';'
    } else {
        of_format
    }
}

/// Returns the column names, or why the first row cannot be a header.
fn names(row: &ByteRecord, delimiter: u8) -> Result<Vec<String>, String> {
    let mut names: Vec<String> = Vec::with_capacity(row.len());
    for field in row {
        let name = std::str::from_utf8(field).map_err(|_| "its column names are not UTF-8")?;
        if names.iter().any(|other| other == name) {
            return Err(format!(
                "the column name `{name}` appears twice: rename one"
            ));
        }
        names.push(name.to_owned());
    }
    // A table of another dialect has one column, with the names of all.
    let other = [',', ';', '\t', '|'].into_iter();
    let mut other = other.filter(|other| *other != char::from(delimiter));
    if let ([name], Some(other)) = (
        &*names,
        other.find(|other| row[0].contains(&(*other as u8))),
    ) {
        let expected = if delimiter == b'\t' { "tabs" } else { "commas" };
        return Err(format!(
            "its only column is named `{}`, so {other:?} seems to separate its columns: expected {expected}",
            name.escape_debug()
        ));
    }
    Ok(names)
}

fn value(columns: &[String], row: &ByteRecord) -> Result<Value, String> {
    if row.len() != columns.len() {
        return Err(format!(
            "the number of fields is {}, expected {} as in the first line",
            row.len(),
            columns.len()
        ));
    }
    let mut record = Map::new();
    for (name, field) in columns.iter().zip(row) {
        let text = std::str::from_utf8(field);
        let text = text.map_err(|_| format!("not UTF-8 in the field `{name}`"))?;
        record.insert(name.clone(), Value::from(text));
    }
    Ok(Value::Object(record))
}
