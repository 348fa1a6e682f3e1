//! Rows: how documents are packed into sequences of a fixed length.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

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

/// How documents become rows of a fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Documents joined by their end tokens and cut at the length; a row is one text.
    Concat,
    /// The same rows, but the documents in a row see nothing of each other.
    Document,
    /// Whole documents put together with little padding, long ones split; they see nothing of each other.
    BestFit,
}

impl Packing {
    /// As in the configuration, and in the names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Concat => "concat",
            Self::Document => "document",
            Self::BestFit => "best_fit",
        }
    }

    fn separates(self) -> bool {
        self != Self::Concat
    }
}

/// A row of a domain: at most `sequence_length` tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its number in the row index.
    pub row: u64,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The documents in it, in their order.
    pub spans: Vec<Span>,
    /// Lengths of the parts that see nothing of each other; empty where the row is one text.
    pub parts: Vec<u32>,
    /// For each token whether its prediction is left out of every loss (prompts); empty where none is.
    pub skipped: Vec<bool>,
}

impl Row {
    pub(crate) fn new(row: u64, tokens: Vec<u32>, spans: Vec<Span>, packing: Packing) -> Self {
        let parts = match packing.separates() {
            true => spans.iter().map(|span| span.tokens as u32).collect(),
            false => Vec::new(),
        };
        Self {
            row,
            tokens,
            spans,
            parts,
            skipped: Vec::new(),
        }
    }

    /// Tokens that are predicted: all but the first of the row, or of each part, and what is skipped.
    pub fn predictions(&self) -> u64 {
        let mut firsts = vec![0];
        let mut start = 0;
        for length in &self.parts {
            start += *length as usize;
            firsts.push(start);
        }
        let skipped = |place: usize| self.skipped.get(place).copied().unwrap_or(false);
        let mut next_first = 0;
        let mut count = 0;
        for place in 0..self.tokens.len() {
            let first = firsts.get(next_first) == Some(&place);
            next_first += usize::from(first);
            count += u64::from(!first && !skipped(place));
        }
        count
    }
}

/// The row index: for each row its spans, so that any packing is read alike. The file holds, as little-endian u64, the number
/// of rows, for each row the number of spans before it (and the total), then three numbers a span; then its own BLAKE3 hash.
#[derive(Debug)]
pub(crate) struct RowIndex {
    numbers: Numbers,
    pub(crate) rows: u64,
}

const HASH_BYTES: u64 = 32;

/// The file of a row index.
pub(crate) fn index_file(folder: &Path, packing: Packing, sequence_length: usize) -> PathBuf {
    folder.join(format!("rows-{}-{sequence_length}.bin", packing.name()))
}

/// Writes a row index; returns the number of rows.
pub(crate) fn write_index(
    path: PathBuf,
    packing: Packing,
    tokens: &Tokens,
    documents: u64,
    sequence_length: u64,
) -> Result<u64, CorpusError> {
    let bounds = (0..)
        .zip(tokens.lengths(documents))
        .map(|(document, length)| Ok((document, length?)));
    let (rows, spans) = match packing {
        Packing::Concat | Packing::Document => concat(bounds, sequence_length)?,
        Packing::BestFit => best_fit(bounds, sequence_length)?,
    };
    let count = rows.len() as u64 - 1;
    let partial = path.with_extension("partial");
    let mut out = NumberWriter::create(partial.clone())?;
    let mut hasher = blake3::Hasher::new();
    let mut write = |number: u64| {
        hasher.update(&number.to_le_bytes());
        out.write(&number.to_le_bytes())
    };
    write(count)?;
    for first in rows {
        write(first)?;
    }
    for span in spans {
        for number in [span.document, span.offset, span.tokens] {
            write(number)?;
        }
    }
    out.write(hasher.finalize().as_bytes())?;
    out.sync()?;
    std::fs::rename(&partial, &path).map_err(CorpusError::io("write", &path))?;
    Ok(count)
}

/// For each row the number of spans before it, and the total; then all spans.
type Packed = (Vec<u64>, Vec<Span>);

/// All documents one after the other (each with its end token), cut every `length` tokens. A last row of a single token predicts
/// nothing and is left out.
fn concat(
    documents: impl Iterator<Item = Result<(u64, u64), CorpusError>>,
    length: u64,
) -> Result<Packed, CorpusError> {
    let (mut rows, mut row_length) = (vec![0_u64], 0);
    let mut spans: Vec<Span> = Vec::new();
    for document in documents {
        let (document, tokens) = document?;
        let mut offset = 0;
        while offset < tokens {
            let count = (tokens - offset).min(length - row_length);
            spans.push(Span {
                document,
                offset,
                tokens: count,
            });
            offset += count;
            row_length += count;
            if row_length == length {
                rows.push(spans.len() as u64);
                row_length = 0;
            }
        }
    }
    if row_length > 1 {
        rows.push(spans.len() as u64);
    } else if row_length == 1 {
        spans.pop();
    }
    Ok((rows, spans))
}

/// Documents (long ones cut every `length` tokens) by falling length, each into the row where it leaves the least room, or a new
/// one. A rest of one token is dropped where it stays alone in a row: it predicts nothing.
fn best_fit(
    documents: impl Iterator<Item = Result<(u64, u64), CorpusError>>,
    length: u64,
) -> Result<Packed, CorpusError> {
    let mut pieces: Vec<Span> = Vec::new();
    for document in documents {
        let (document, tokens) = document?;
        let mut offset = 0;
        while offset < tokens {
            let count = (tokens - offset).min(length);
            pieces.push(Span {
                document,
                offset,
                tokens: count,
            });
            offset += count;
        }
    }
    pieces.sort_by_key(|piece| {
        (
            std::cmp::Reverse(piece.tokens),
            piece.document,
            piece.offset,
        )
    });
    // Rows by the room that they have left, the oldest first.
    let mut open: BTreeMap<u64, VecDeque<usize>> = BTreeMap::new();
    let mut packed: Vec<Vec<Span>> = Vec::new();
    for piece in pieces {
        let room = open.range(piece.tokens..).next().map(|(room, _)| *room);
        let row = match room {
            Some(room) => {
                let rows = open.entry(room).or_default();
                let row = rows.pop_front();
                if rows.is_empty() {
                    open.remove(&room);
                }
                row.map(|row| (row, room))
            }
            None => None,
        };
        let (row, room) = row.unwrap_or_else(|| {
            packed.push(Vec::new());
            (packed.len() - 1, length)
        });
        packed[row].push(piece);
        if room > piece.tokens {
            open.entry(room - piece.tokens).or_default().push_back(row);
        }
    }
    packed.retain(|row| row.iter().any(|span| span.tokens > 1));
    let mut rows = vec![0_u64];
    let mut spans = Vec::new();
    for row in packed {
        spans.extend(row);
        rows.push(spans.len() as u64);
    }
    Ok((rows, spans))
}

impl RowIndex {
    /// Whether a file is a row index, by its name.
    pub(crate) fn is_one(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("rows-") && name.ends_with(".bin")
    }

    /// Compares a row index with the hash at its end.
    pub(crate) fn verify(path: &Path) -> Result<(), CorpusError> {
        let index = Self::open(path)?;
        let failed = || CorpusError::io("read", path);
        let contents = index.numbers.length - HASH_BYTES;
        let file = File::open(path).map_err(failed())?;
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(file.take(contents))
            .map_err(failed())?;
        let hash = index.numbers.bytes(contents, HASH_BYTES as usize)?;
        if hasher.finalize().as_bytes() != hash.as_slice() {
            return Err(CorpusError::damaged(
                path,
                "does not have the content that it was written with: delete it and prepare again",
            ));
        }
        Ok(())
    }

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
        let within = |index: &u64| *index < bytes / 8;
        let number = |index: Option<u64>| match index.filter(within) {
            Some(index) => numbers.u64(index),
            None => Err(damaged()),
        };
        let rows = number(Some(0))?;
        let spans = number(rows.checked_add(1))?;
        let expected = spans
            .checked_mul(24)
            .and_then(|spans| spans.checked_add(8 * (rows + 2) + HASH_BYTES));
        if expected != Some(bytes) {
            return Err(damaged());
        }
        Ok(Self { numbers, rows })
    }

    /// The spans of a row, in constant time.
    pub(crate) fn spans(&self, row: u64) -> Result<Vec<Span>, CorpusError> {
        let ends = self.numbers.u64s(1 + row, 2)?;
        let count = ends[1].checked_sub(ends[0]).filter(|_| row < self.rows);
        let Some(count) = count else {
            let reason = format!("has no row {row}: delete it and prepare again");
            return Err(CorpusError::damaged(self.numbers.path(), reason));
        };
        let first = self.rows + 2 + 3 * ends[0];
        let numbers = self.numbers.u64s(first, 3 * count as usize)?;
        let (spans, _) = numbers.as_chunks::<3>();
        let span = |&[document, offset, tokens]: &[u64; 3]| Span {
            document,
            offset,
            tokens,
        };
        Ok(spans.iter().map(span).collect())
    }
}
