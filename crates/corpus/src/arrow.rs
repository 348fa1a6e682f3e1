//! Reads Arrow IPC files: the stream format, as in the caches of Hugging Face `datasets`, and the file format (Feather
//! version 2), which holds a stream between a magic number and a footer.

use std::{
    io::{self, Read},
    iter,
    sync::Arc,
};

use arrow_array::{
    Array, RecordBatch,
    cast::AsArray,
    types::{
        Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
        UInt32Type, UInt64Type,
    },
};
use arrow_buffer::Buffer;
use arrow_ipc::reader::StreamDecoder;
use arrow_schema::DataType;
use serde_json::{Map, Value};

use crate::{
    CorpusError,
    raw::{Contents, Input, More, Raw, Raws},
};

/// The first and the last bytes of the file format.
const MAGIC: &[u8] = b"ARROW1";
/// Writers pad the magic number with zeros to a multiple of this.
const PADDED: usize = 8;
const CHUNK: usize = 1 << 20;

/// Reads the rows of an Arrow file, one record batch at a time.
pub(crate) fn read(input: Input<'_>) -> Result<Raws<'_>, CorpusError> {
    let mut batches = Batches {
        reader: input.open()?,
        decoder: StreamDecoder::new(),
        buffer: Buffer::default(),
        is_file: None,
    };
    let (mut batch, mut row, mut line): (Option<Arc<RecordBatch>>, usize, u64) = (None, 0, 0);
    Ok(Box::new(iter::from_fn(move || {
        loop {
            if let Some(batch) = batch.as_ref().filter(|batch| row < batch.num_rows()) {
                (row, line) = (row + 1, line + 1);
                let (batch, place) = (Arc::clone(batch), row - 1);
                let bytes = batch.get_array_memory_size() / batch.num_rows();
                let value = move || Ok(record(&batch, place));
                return Some(Ok(Raw::row(line, bytes, More::Unknown, value)));
            }
            match batches.next() {
                Ok(Step::Batch(next)) => (batch, row) = (Some(Arc::new(next)), 0),
                Ok(Step::End) => return None,
                Ok(Step::Damage(reason)) => return Some(Ok(Raw::damage(line + 1, reason))),
                Err(error) => return Some(input.broken(line + 1, error)),
            }
        }
    })))
}

enum Step {
    Batch(RecordBatch),
    Damage(String),
    End,
}

struct Batches<'a> {
    reader: Contents<'a>,
    decoder: StreamDecoder,
    buffer: Buffer,
    /// Whether the file is in the file format; `None` before the first byte.
    is_file: Option<bool>,
}

impl Batches<'_> {
    fn next(&mut self) -> io::Result<Step> {
        loop {
            if self.buffer.is_empty() {
                let mut bytes = Vec::new();
                self.reader
                    .by_ref()
                    .take(CHUNK as u64)
                    .read_to_end(&mut bytes)?;
                if bytes.is_empty() {
                    return Ok(self.end());
                }
                let is_start = self.is_file.is_none();
                let is_file = *self.is_file.get_or_insert(bytes.starts_with(MAGIC));
                let skipped = if is_start && is_file {
                    start(&bytes)
                } else {
                    0
                };
                self.buffer = Buffer::from_vec(bytes.split_off(skipped));
                continue;
            }
            match self.decoder.decode(&mut self.buffer) {
                Ok(Some(batch)) => return Ok(Step::Batch(batch)),
                Ok(None) => {}
                // Only the end of the stream leaves the decoder between two messages after an error.
                Err(_) if self.decoder.finish().is_ok() => return self.footer(),
                Err(error) => {
                    return Ok(Step::Damage(format!("the file is cut or damaged: {error}")));
                }
            }
        }
    }

    /// The end of the file, without the end of its stream.
    fn end(&mut self) -> Step {
        match (self.is_file, self.decoder.finish()) {
            (Some(false), Ok(())) => Step::End,
            (Some(true), Ok(())) => Step::Damage("the file is cut: it has no footer".to_owned()),
            (None, _) => Step::Damage("empty".to_owned()),
            (_, Err(error)) => Step::Damage(format!("the file is cut or damaged: {error}")),
        }
    }

    /// What follows the end of the stream.
    fn footer(&mut self) -> io::Result<Step> {
        let mut last = self.buffer.to_vec();
        loop {
            let length = last.len();
            self.reader
                .by_ref()
                .take(CHUNK as u64)
                .read_to_end(&mut last)?;
            if last.len() == length {
                break;
            }
            last.drain(..last.len().saturating_sub(MAGIC.len()));
        }
        Ok(match self.is_file {
            Some(true) if last.ends_with(MAGIC) => Step::End,
            Some(true) => Step::Damage("the file is cut: it has no footer".to_owned()),
            _ => Step::Damage("data follow the end of the stream".to_owned()),
        })
    }
}

/// Where the stream of a file begins, after the magic number and its padding.
fn start(bytes: &[u8]) -> usize {
    let parts = bytes.chunks_exact(PADDED).skip(1);
    let padding = parts.take_while(|part| part.iter().all(|byte| *byte == 0));
    (PADDED * (1 + padding.count())).min(bytes.len())
}

fn record(batch: &RecordBatch, row: usize) -> Value {
    let schema = batch.schema_ref();
    let columns = schema.fields().iter().zip(batch.columns());
    let fields = columns.map(|(field, column)| (field.name().clone(), value(column, row)));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// Converts a value to JSON. Values other than text, numbers, Booleans, and lists and structs of these become null.
fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).map_or(Value::Null, Value::from);
    let list = |items: &dyn Array| (0..items.len()).map(|item| value(items, item)).collect();
    match array.data_type() {
        DataType::Utf8 => Value::from(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Value::from(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Value::from(array.as_string_view().value(row)),
        DataType::Binary => text(array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => text(array.as_binary::<i64>().value(row)),
        DataType::BinaryView => text(array.as_binary_view().value(row)),
        DataType::Boolean => Value::from(array.as_boolean().value(row)),
        DataType::Int8 => Value::from(array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => Value::from(array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => Value::from(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => Value::from(array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => Value::from(array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => Value::from(array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => Value::from(array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => Value::from(array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => Value::from(array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => Value::from(array.as_primitive::<Float64Type>().value(row)),
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row)),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(array.as_struct().columns());
            let fields = columns.map(|(field, column)| (field.name().clone(), value(column, row)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        DataType::Dictionary(..) => {
            let dictionary = array.as_any_dictionary();
            let key = value(dictionary.keys(), row).as_u64();
            key.map_or(Value::Null, |key| value(dictionary.values(), key as usize))
        }
        _ => Value::Null,
    }
}
