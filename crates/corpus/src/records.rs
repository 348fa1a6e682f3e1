//! Reads the records of a file one by one, in the form that its format gives them. Never holds a whole file of records
//! in memory.

use std::{fs::File, io::Read, iter, sync::atomic::Ordering};

use parquet::file::{reader::FileReader, serialized_reader::SerializedFileReader};

use crate::{
    CorpusError, FileFormat, arrow,
    format::Compression,
    json,
    megatron::{self, Index},
    raw::{Content, Input, More, Raw, Raws, UTF8_MARK, only, read_lines},
    source::SourceFile,
    table,
};

/// Reads the records of a file one by one, without parsing them. Damage counts as an unusable record, the last one of
/// the file.
pub(crate) fn read(input: Input<'_>) -> Result<Raws<'_>, CorpusError> {
    let mut records: Raws<'_> = match input.file.format.records {
        FileFormat::Text => Box::new(iter::once(read_whole(input))),
        FileFormat::Jsonl => read_lines(input)?,
        FileFormat::Json => json::read(input)?,
        FileFormat::Parquet => read_parquet(input)?,
        FileFormat::Arrow => arrow::read(input)?,
        FileFormat::Csv => table::read(input, b',')?,
        FileFormat::Tsv => table::read(input, b'\t')?,
        FileFormat::Megatron => megatron::read(input)?,
    };
    let mut ended = false;
    Ok(Box::new(iter::from_fn(move || {
        let record = if ended { None } else { records.next() };
        ended |= matches!(&record, Some(Ok(record)) if record.ends_file);
        record
    })))
}

/// Maximum number of usable records in a file, without reading it; `None` if unknown. `shortest_line`: minimum bytes of
/// a line that holds a usable record of JSON.
pub(crate) fn most_records(file: &SourceFile, shortest_line: u64) -> Option<u64> {
    match (file.format.records, file.format.compression) {
        (FileFormat::Text, _) => Some(1),
        (FileFormat::Parquet, _) => parquet_rows(file),
        (FileFormat::Megatron, _) => Index::count(file),
        (FileFormat::Jsonl | FileFormat::Json, Compression::None) => {
            Some(file.bytes.div_ceil(shortest_line))
        }
        (FileFormat::Csv | FileFormat::Tsv, Compression::None) => {
            Some(file.bytes.div_ceil(table::SHORTEST_ROW))
        }
        _ => None,
    }
}

fn read_whole(input: Input<'_>) -> Result<Raw, CorpusError> {
    let mut bytes = Vec::new();
    let room = input.longest.saturating_add(1 + UTF8_MARK.len() as u64);
    if let Err(error) = input.open()?.take(room).read_to_end(&mut bytes) {
        return input.broken(1, error);
    }
    Ok(Raw::new(1, Content::Whole(bytes), More::Records(0)))
}

fn read_parquet(input: Input<'_>) -> Result<Raws<'_>, CorpusError> {
    let file = input.file;
    let opened = File::open(&file.path).map_err(CorpusError::io("read", &file.path))?;
    let damage = |line, error| Raw::damage(line, format!("the file is cut or damaged: {error}"));
    let reader = match SerializedFileReader::new(opened) {
        Ok(reader) => reader,
        Err(error) => return Ok(only(Ok(damage(1, error)))),
    };
    let count = row_count(&reader);
    let bytes_of_row = file.bytes / count.max(1);
    let records = (1..).zip(reader).map(move |(line, row)| match row {
        Ok(row) => {
            if let Some(passed) = input.passed {
                passed.fetch_add(bytes_of_row, Ordering::Relaxed);
            }
            let more = More::Records(count.saturating_sub(line));
            let bytes = 4 * bytes_of_row as usize;
            Raw::row(line, bytes, more, move || Ok(crate::parquet::record(&row)))
        }
        Err(error) => damage(line, error),
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
