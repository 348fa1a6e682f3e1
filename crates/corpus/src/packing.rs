//! Packs documents into sequences of a fixed length, and stores the result in a row index.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::Write,
    iter,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    CorpusError, Packing, Span,
    checksums::{BLOCK_BYTES, BlockSums, Blocks, SUM_BYTES, sums},
    store::{Numbers, Tokens},
};

/// The row index lists the spans of each sequence, so that every packing is read alike. The file holds, as
/// little-endian u64: the number of sequences; for each sequence the number of spans before it (and the total); three
/// numbers per span. The checksum of each block of these numbers follows, then the BLAKE3 hash of the checksums.
#[derive(Debug)]
pub(crate) struct RowIndex {
    numbers: Numbers,
    pub(crate) rows: u64,
}

/// Path of a row index.
pub(crate) fn index_file(folder: &Path, packing: Packing, sequence_length: usize) -> PathBuf {
    folder.join(format!("rows-{packing}-{sequence_length}.bin"))
}

/// Writes a row index and returns the number of sequences.
pub(crate) fn write_index(
    path: &Path,
    packing: Packing,
    tokens: &Tokens,
    documents: u64,
    sequence_length: u64,
) -> Result<u64, CorpusError> {
    let bounds = (0..)
        .zip(tokens.lengths(documents))
        .map(|(document, length)| Ok((document, length?)));
    let (rows, spans) = match packing {
        Packing::Concat | Packing::ConcatMasked => concat(bounds, sequence_length)?,
        Packing::BestFit => best_fit(bounds, sequence_length)?,
    };
    let count = rows.len() as u64 - 1;
    let of_span = |span: Span| [span.document, span.offset, span.tokens];
    let numbers = iter::once(count).chain(rows);
    let numbers = numbers.chain(spans.into_iter().flat_map(of_span));
    ddk_files::replace(path, |out| {
        let mut blocks = BlockSums::default();
        for number in numbers {
            blocks.update(&number.to_le_bytes());
            out.write_all(&number.to_le_bytes())?;
        }
        let sums = blocks.finish();
        out.write_all(&sums)?;
        out.write_all(blake3::hash(&sums).as_bytes())
    })?;
    Ok(count)
}

/// For each sequence the number of spans before it, and the total; then all spans.
type Packed = (Vec<u64>, Vec<Span>);

/// Joins all documents (each with its end token) and cuts them every `length` tokens. A last sequence of a single
/// token predicts nothing and is left out.
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

/// Packs documents (long ones cut every `length` tokens) in order of decreasing length. Each piece goes into the
/// sequence where it leaves the least room, or into a new one. A piece of one token that stays alone in a sequence is
/// dropped, because it predicts nothing.
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
    // Sequences by their remaining room, the oldest first.
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
    /// Whether a file is a row index, judging by its name.
    pub(crate) fn is_one(path: &Path) -> bool {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("rows-") && name.ends_with(".bin")
    }

    /// Compares a row index with the checksums at its end.
    pub(crate) fn verify(path: &Path) -> Result<(), CorpusError> {
        Self::open(path)?.numbers.verify()
    }

    pub(crate) fn open(path: &Path) -> Result<Self, CorpusError> {
        let failed = || CorpusError::io("read", path);
        let file = File::open(path).map_err(failed())?;
        let bytes = file.metadata().map_err(failed())?.len();
        let damaged = || {
            CorpusError::damaged(
                path,
                "is not a complete index of sequences: delete it and prepare again",
            )
        };
        // The file ends with a checksum for each block, and the hash of the checksums.
        let sum = SUM_BYTES as u64;
        let blocks = bytes.saturating_sub(sum).div_ceil(BLOCK_BYTES + sum);
        let length = bytes.checked_sub((blocks + 1) * sum).ok_or_else(damaged)?;
        let mut ending = vec![0; (bytes - length) as usize];
        file.read_exact_at(&mut ending, length).map_err(failed())?;
        let (written, hash) = ending.split_at(ending.len() - SUM_BYTES);
        if blake3::hash(written).as_bytes() != hash {
            return Err(damaged());
        }
        let blocks = Blocks::new(sums(written));
        let numbers = Numbers::of_file(path, file, length, blocks);
        let rows = numbers.u64s(0, 1)?[0];
        Ok(Self { numbers, rows })
    }

    /// Returns the spans of a sequence, in constant time.
    pub(crate) fn spans(&self, row: u64) -> Result<Vec<Span>, CorpusError> {
        let ends = self.numbers.u64s(1 + row, 2)?;
        let count = ends[1].checked_sub(ends[0]).filter(|_| row < self.rows);
        let Some(count) = count else {
            let reason = format!("has no sequence {row}: delete it and prepare again");
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
