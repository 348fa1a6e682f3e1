//! Packs documents into sequences of a fixed length, and stores the result in a row index.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fs::File,
    io::{self, BufWriter, Write},
    iter,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::{
    CorpusError, Packing, Span,
    checksums::{BLOCK_BYTES, Blocks, SUM_BYTES},
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

/// Writes a row index and returns the number of sequences. Joined documents are read piece by piece, while `best_fit`
/// holds a list of all documents in memory.
pub(crate) fn write_index(
    path: &Path,
    packing: Packing,
    tokens: &Tokens,
    documents: u64,
    sequence_length: u64,
) -> Result<u64, CorpusError> {
    let mut packed = Ok(0);
    let written = ddk_files::replace(path, |out| {
        let mut index = IndexWriter {
            path,
            out,
            block: Vec::with_capacity(BLOCK_BYTES as usize),
            sums: Vec::new(),
        };
        packed = match packing {
            Packing::Concat | Packing::ConcatMasked => {
                concat(tokens, documents, sequence_length, &mut index)
            }
            Packing::BestFit => {
                let lengths = tokens.lengths(documents);
                lengths.and_then(|lengths| index.write_all(best_fit(&lengths, sequence_length)))
            }
        };
        if packed.is_err() {
            return Err(io::ErrorKind::Other.into());
        }
        index.finish()
    });
    let rows = packed?;
    written?;
    Ok(rows)
}

/// Writes the numbers of a row index.
struct IndexWriter<'a> {
    path: &'a Path,
    out: &'a mut BufWriter<File>,
    block: Vec<u8>,
    sums: Vec<u8>,
}

impl IndexWriter<'_> {
    fn write(&mut self, numbers: &[u64]) -> Result<(), CorpusError> {
        for number in numbers {
            self.block.extend_from_slice(&number.to_le_bytes());
            if self.block.len() as u64 == BLOCK_BYTES {
                let ended = self.end_block();
                ended.map_err(CorpusError::io("write", self.path))?;
            }
        }
        Ok(())
    }

    fn write_span(&mut self, span: Span) -> Result<(), CorpusError> {
        self.write(&[span.document, span.offset, span.tokens])
    }

    fn write_all(&mut self, (rows, spans): Packed) -> Result<u64, CorpusError> {
        let count = rows.len() as u64 - 1;
        self.write(&[count])?;
        self.write(&rows)?;
        let mut spans = spans.into_iter();
        spans.try_for_each(|span| self.write_span(span))?;
        Ok(count)
    }

    fn end_block(&mut self) -> io::Result<()> {
        self.out.write_all(&self.block)?;
        let sum = blake3::hash(&self.block);
        self.sums.extend_from_slice(sum.as_bytes());
        self.block.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.out.write_all(&self.sums)?;
        self.out.write_all(blake3::hash(&self.sums).as_bytes())
    }
}

/// For each sequence the number of spans before it, and the total; then all spans.
type Packed = (Vec<u64>, Vec<Span>);

/// Joins all documents (each with its end token) and cuts them every `length` tokens. A last sequence of a single
/// token predicts nothing and is left out. Returns the number of sequences.
fn concat(
    tokens: &Tokens,
    documents: u64,
    length: u64,
    index: &mut IndexWriter<'_>,
) -> Result<u64, CorpusError> {
    // Passes each span, and whether it ends a sequence.
    let spans = |each: &mut dyn FnMut(Span, bool) -> Result<(), CorpusError>| {
        let mut row_length = 0;
        tokens.each_length(documents, |document, tokens| {
            for span in cut(document, tokens, length - row_length, length) {
                row_length = (row_length + span.tokens) % length;
                each(span, row_length == 0)?;
            }
            Ok(())
        })
    };
    let total = tokens.total(documents)?;
    let (rest, count) = (
        total % length,
        total / length + u64::from(total % length > 1),
    );
    index.write(&[count, 0])?;
    let mut before = 0_u64;
    spans(&mut |_, ends_row| {
        before += 1;
        let row: &[u64] = if ends_row { &[before] } else { &[] };
        index.write(row)
    })?;
    if rest > 1 {
        index.write(&[before])?;
    }
    let mut last = None;
    spans(&mut |span, _| match last.replace(span) {
        Some(span) => index.write_span(span),
        None => Ok(()),
    })?;
    if let Some(span) = last.filter(|_| rest != 1) {
        index.write_span(span)?;
    }
    Ok(count)
}

/// Cuts a document after `first` tokens and then every `length` tokens.
fn cut(document: u64, tokens: u64, first: u64, length: u64) -> impl Iterator<Item = Span> {
    let mut offset = 0;
    iter::from_fn(move || {
        let room = if offset == 0 { first } else { length };
        let span = Span {
            document,
            offset,
            tokens: room.min(tokens - offset),
        };
        offset += span.tokens;
        (span.tokens > 0).then_some(span)
    })
}

/// Packs documents (long ones cut every `length` tokens) in order of decreasing length. Each piece goes into the
/// sequence where it leaves the least room, or into a new one. A piece of one token that stays alone in a sequence is
/// dropped, because it predicts nothing.
fn best_fit(lengths: &[u64], length: u64) -> Packed {
    let mut pieces: Vec<Span> = (0..)
        .zip(lengths)
        .flat_map(|(document, &tokens)| cut(document, tokens, length, length))
        .collect();
    // Pieces of the same length stay in order.
    pieces.sort_by_key(|piece| Reverse(piece.tokens));
    // Sequences with room: how much, the number of the piece that left it, and the number of the sequence.
    let mut open = BTreeSet::new();
    let mut packed: Vec<Vec<Span>> = Vec::new();
    for (number, piece) in pieces.into_iter().enumerate() {
        let fitting = open.range((piece.tokens, 0, 0)..).next().copied();
        let place = fitting.unwrap_or_else(|| {
            packed.push(Vec::new());
            (length, number, packed.len() - 1)
        });
        open.remove(&place);
        let (room, _, row) = place;
        packed[row].push(piece);
        if room > piece.tokens {
            open.insert((room - piece.tokens, number, row));
        }
    }
    packed.retain(|row| row.iter().any(|span| span.tokens > 1));
    let (mut rows, mut spans) = (vec![0], Vec::new());
    for row in packed {
        spans.extend(row);
        rows.push(spans.len() as u64);
    }
    (rows, spans)
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
        let incomplete = "is not a complete index of sequences: delete it and prepare again";
        let damaged = || CorpusError::damaged(path, incomplete);
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
        let numbers = Numbers {
            path: path.to_owned(),
            file,
            length,
            blocks: Blocks::new(written),
        };
        let rows = numbers.u64s(0, 1)?[0];
        Ok(Self { numbers, rows })
    }

    /// Returns the spans of a sequence, in constant time.
    pub(crate) fn spans(&self, row: u64) -> Result<Vec<Span>, CorpusError> {
        let ends = self.numbers.u64s(1 + row, 2)?;
        let count = ends[1].checked_sub(ends[0]).filter(|_| row < self.rows);
        let Some(count) = count else {
            let reason = format!("has no sequence {row}: delete it and prepare again");
            return Err(CorpusError::damaged(&self.numbers.path, reason));
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
