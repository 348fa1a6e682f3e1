//! Rows: how documents are packed into sequences of a fixed length.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    CorpusError,
    store::{NumberWriter, Numbers, Tokens},
};

/// A stretch of a document in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The document's number in the prepared domain.
    pub document: u64,
    /// Its first token in the document.
    pub offset: u64,
    /// How many.
    pub tokens: u64,
}

/// A row of a domain: `sequence_length` tokens, or fewer in a domain's last row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its number in the row index.
    pub row: u64,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The documents in it, in their order.
    pub spans: Vec<Span>,
}

/// The row index: for each row its spans, so that any packing is read alike. The file holds, as little-endian u64, the number
/// of rows, for each row the number of spans before it (and the total), then three numbers a span.
#[derive(Debug)]
pub(crate) struct RowIndex {
    numbers: Numbers,
    pub(crate) rows: u64,
}

/// The row index's file for documents joined and cut at `sequence_length`.
pub(crate) fn index_file(folder: &Path, sequence_length: usize) -> PathBuf {
    folder.join(format!("rows-concat-{sequence_length}.bin"))
}

/// Writes the index of packing `concat`: all documents one after the other (each with its end token), cut every
/// `sequence_length` tokens. A last row of a single token predicts nothing and is left out.
pub(crate) fn write_concat(
    path: PathBuf,
    tokens: &Tokens,
    documents: u64,
    sequence_length: u64,
) -> Result<u64, CorpusError> {
    let (mut rows, mut row_length) = (vec![0_u64], 0);
    let mut spans: Vec<Span> = Vec::new();
    for document in 0..documents {
        let Some((start, end)) = tokens.bounds(document) else {
            return Err(CorpusError::damaged(
                &path,
                format!("document {document} has no end"),
            ));
        };
        let mut offset = 0;
        while start + offset < end {
            let count = (end - start - offset).min(sequence_length - row_length);
            spans.push(Span {
                document,
                offset,
                tokens: count,
            });
            offset += count;
            row_length += count;
            if row_length == sequence_length {
                rows.push(spans.len() as u64);
                row_length = 0;
            }
        }
    }
    if row_length > 1 {
        rows.push(spans.len() as u64);
    }
    let count = rows.len() as u64 - 1;
    let partial = path.with_extension("partial");
    let mut out = NumberWriter::create(partial.clone())?;
    out.write(&count.to_le_bytes())?;
    for first in rows {
        out.write(&first.to_le_bytes())?;
    }
    for span in spans {
        for number in [span.document, span.offset, span.tokens] {
            out.write(&number.to_le_bytes())?;
        }
    }
    out.finish()?;
    std::fs::rename(&partial, &path).map_err(CorpusError::io("write", &path))?;
    Ok(count)
}

impl RowIndex {
    pub(crate) fn open(path: &Path) -> Result<Self, CorpusError> {
        let bytes = path
            .metadata()
            .map_err(CorpusError::io("read", path))?
            .len();
        let numbers = Numbers::open(path, bytes)?;
        let damaged = || {
            CorpusError::damaged(
                path,
                "is not a whole row index: delete it and prepare again",
            )
        };
        let rows = numbers.u64(0).ok_or_else(damaged)?;
        let spans = rows
            .checked_add(1)
            .and_then(|last| numbers.u64(last))
            .ok_or_else(damaged)?;
        let expected = spans
            .checked_mul(24)
            .and_then(|spans| spans.checked_add(8 * (rows + 2)));
        // A last row of one token leaves its span behind, unnamed.
        if expected.is_none_or(|expected| bytes < expected) {
            return Err(damaged());
        }
        Ok(Self { numbers, rows })
    }

    /// The spans of a row, in constant time.
    pub(crate) fn spans(&self, row: u64) -> Option<Vec<Span>> {
        let (first, last) = (self.numbers.u64(1 + row)?, self.numbers.u64(2 + row)?);
        let base = self.rows + 2;
        (first..last)
            .map(|span| {
                let number = |index| self.numbers.u64(base + 3 * span + index);
                Some(Span {
                    document: number(0)?,
                    offset: number(1)?,
                    tokens: number(2)?,
                })
            })
            .collect()
    }
}
