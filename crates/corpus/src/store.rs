//! Writes tokens and document ends to files as a stream, and reads them piece by piece.

use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    CorpusError,
    checksums::{BLOCK_BYTES, Blocks, Checksums},
    manifest::Manifest,
    tokenizer::EncodedDocument,
};

/// A file of little-endian numbers being written.
pub(crate) struct NumberWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl NumberWriter {
    /// Opens a file to append after its first `length` bytes, and cuts off the rest.
    pub(crate) fn open_at(path: PathBuf, length: u64) -> Result<Self, CorpusError> {
        ddk_files::step("open", &path);
        let failed = || CorpusError::io("write", &path);
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed())?;
        if file.metadata().map_err(failed())?.len() < length {
            return Err(CorpusError::damaged(
                &path,
                "is shorter than its progress.json says: prepare the corpus again (ddk prepare CONFIG --force)",
            ));
        }
        file.set_len(length).map_err(failed())?;
        file.seek(SeekFrom::End(0)).map_err(failed())?;
        Ok(Self {
            out: BufWriter::with_capacity(1 << 18, file),
            path,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CorpusError> {
        ddk_files::step("append", &self.path);
        self.out
            .write_all(bytes)
            .map_err(CorpusError::io("write", &self.path))
    }

    /// Makes all written bytes durable.
    pub(crate) fn sync(&mut self) -> Result<(), CorpusError> {
        self.out
            .flush()
            .map_err(CorpusError::io("write", &self.path))?;
        ddk_files::step("sync", &self.path);
        let synced = self.out.get_ref().sync_all();
        synced.map_err(CorpusError::io("write", &self.path))
    }
}

/// The two files of a loss mask.
#[derive(Debug)]
struct Masked<T> {
    /// Start and end of each range, counted from the document's start.
    ranges: T,
    /// The number of ranges before each document, and the total.
    ends: T,
}

/// How much a [`TokenWriter`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) tokens: u64,
    pub(crate) documents: u64,
    /// Masked ranges.
    pub(crate) masked: u64,
}

/// Writes `tokens.bin` (the tokens of documents) and `documents.bin` (where each document ends), with a prefix before
/// both names. With a loss mask, also writes `masked.bin` (the token ranges in each document that are not to be
/// predicted) and `masked-documents.bin` (the number of ranges up to the document's end).
pub(crate) struct TokenWriter {
    tokens: NumberWriter,
    documents: NumberWriter,
    masked: Option<Masked<NumberWriter>>,
    width: usize,
    pub(crate) written: Written,
}

impl TokenWriter {
    /// Continues after `written`. `width`: bytes per token, 2 or 4.
    pub(crate) fn open(
        folder: &Path,
        prefix: &str,
        width: usize,
        masked: bool,
        written: Written,
    ) -> Result<Self, CorpusError> {
        let open = |name: &str, length| {
            NumberWriter::open_at(folder.join(format!("{prefix}{name}.bin")), length)
        };
        let ends = |name: &str| {
            if written.documents > 0 {
                return open(name, 8 * (written.documents + 1));
            }
            let mut ends = open(name, 0)?;
            ends.write(&0_u64.to_le_bytes())?;
            Ok(ends)
        };
        let open_masked = || {
            Ok::<_, CorpusError>(Masked {
                ranges: open("masked", 16 * written.masked)?,
                ends: ends("masked-documents")?,
            })
        };
        Ok(Self {
            tokens: open("tokens", written.tokens * width as u64)?,
            documents: ends("documents")?,
            masked: masked.then(open_masked).transpose()?,
            width,
            written,
        })
    }

    pub(crate) fn append(&mut self, document: &EncodedDocument) -> Result<(), CorpusError> {
        let mut bytes = Vec::with_capacity(document.tokens.len() * self.width);
        for token in &document.tokens {
            bytes.extend_from_slice(&token.to_le_bytes()[..self.width]);
        }
        self.tokens.write(&bytes)?;
        self.written.tokens += document.tokens.len() as u64;
        self.written.documents += 1;
        if let Some(masked) = &mut self.masked {
            self.written.masked += document.masked.len() as u64;
            for range in &document.masked {
                masked.ranges.write(&range.start.to_le_bytes())?;
                masked.ranges.write(&range.end.to_le_bytes())?;
            }
            masked.ends.write(&self.written.masked.to_le_bytes())?;
        }
        self.documents.write(&self.written.tokens.to_le_bytes())
    }

    /// Makes all files durable.
    pub(crate) fn sync(&mut self) -> Result<(), CorpusError> {
        self.tokens.sync()?;
        self.documents.sync()?;
        if let Some(masked) = &mut self.masked {
            masked.ranges.sync()?;
            masked.ends.sync()?;
        }
        Ok(())
    }
}

/// An open file of little-endian numbers. It is read, not mapped: if the disk fails, a read returns an error with
/// file and offset, while a map would kill the process. The system caches frequent reads either way. The first read
/// of a block compares it with its checksum.
#[derive(Debug)]
pub(crate) struct Numbers {
    path: PathBuf,
    file: File,
    /// Bytes of the numbers. This is the length of the file, except for a row index, where checksums follow.
    pub(crate) length: u64,
    blocks: Blocks,
}

impl Numbers {
    /// Opens a file that must have `bytes` bytes.
    pub(crate) fn open(path: &Path, bytes: u64, blocks: Blocks) -> Result<Self, CorpusError> {
        let file = File::open(path).map_err(CorpusError::io("read", path))?;
        let found = file
            .metadata()
            .map_err(CorpusError::io("read", path))?
            .len();
        if found != bytes {
            return Err(CorpusError::damaged(
                path,
                format!(
                    "has {found} bytes, expected {bytes}: prepare the corpus again (ddk prepare CONFIG --force)"
                ),
            ));
        }
        Ok(Self::of_file(path, file, bytes, blocks))
    }

    /// Wraps the first `length` bytes of an open file.
    pub(crate) fn of_file(path: &Path, file: File, length: u64, blocks: Blocks) -> Self {
        Self {
            path: path.to_owned(),
            file,
            length,
            blocks,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns `count` bytes from `offset` on.
    pub(crate) fn bytes(&self, offset: u64, count: usize) -> Result<Vec<u8>, CorpusError> {
        // Check before allocating: the offset and the count may come from damaged data.
        let end = offset
            .checked_add(count as u64)
            .filter(|end| *end <= self.length);
        let Some(end) = end else {
            let reason = format!(
                "ends before byte {offset} + {count}: prepare the corpus again (ddk prepare CONFIG --force)"
            );
            return Err(CorpusError::damaged(&self.path, reason));
        };
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        if blocks.clone().all(|block| self.blocks.is_verified(block)) {
            return self.raw(offset, count);
        }
        // Return the same bytes that were compared.
        let mut bytes = Vec::with_capacity(count);
        for block in blocks {
            let start = block * BLOCK_BYTES;
            let whole = self.block(block)?;
            let from = offset.saturating_sub(start) as usize;
            let to = (end - start).min(whole.len() as u64) as usize;
            bytes.extend_from_slice(&whole[from..to]);
        }
        Ok(bytes)
    }

    /// Reads a block and compares it with its checksum.
    fn block(&self, block: u64) -> Result<Vec<u8>, CorpusError> {
        let offset = block * BLOCK_BYTES;
        let count = BLOCK_BYTES.min(self.length - offset);
        let bytes = self.raw(offset, count as usize)?;
        if self.blocks.verify(block, &bytes) {
            Ok(bytes)
        } else {
            Err(CorpusError::Corrupt {
                path: self.path.clone(),
                offset,
                bytes: count,
            })
        }
    }

    /// Compares all blocks with their checksums.
    pub(crate) fn verify(&self) -> Result<(), CorpusError> {
        (0..self.length.div_ceil(BLOCK_BYTES)).try_for_each(|block| self.block(block).map(drop))
    }

    fn raw(&self, offset: u64, count: usize) -> Result<Vec<u8>, CorpusError> {
        let mut bytes = vec![0; count];
        match self.file.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(source) => Err(CorpusError::Unreadable {
                path: self.path.clone(),
                offset,
                source,
            }),
        }
    }

    /// Returns `count` numbers from number `index` on.
    pub(crate) fn u64s(&self, index: u64, count: usize) -> Result<Vec<u64>, CorpusError> {
        let bytes = self.bytes(8 * index, 8 * count)?;
        let (numbers, _) = bytes.as_chunks::<8>();
        Ok(numbers
            .iter()
            .map(|number| u64::from_le_bytes(*number))
            .collect())
    }
}

/// Number of document ends per read when iterating over all documents.
const ENDS_AT_A_TIME: u64 = 1 << 14;

/// Documents as [`TokenWriter`] wrote them.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokens: Numbers,
    ends: Numbers,
    /// Token ranges that are not to be predicted; `None` without a loss mask.
    masks: Option<Masked<Numbers>>,
    width: usize,
}

impl Tokens {
    /// `prefix`: "" for training documents, "validation-" for validation documents.
    pub(crate) fn open(
        folder: &Path,
        prefix: &str,
        manifest: &Manifest,
        checksums: &Checksums,
    ) -> Result<Self, CorpusError> {
        let (tokens, documents) = match prefix {
            "" => (manifest.tokens, manifest.documents),
            _ => (manifest.validation_tokens, manifest.validation_documents),
        };
        let width = manifest.token_bytes;
        let open = |name: &str, bytes| {
            let name = format!("{prefix}{name}.bin");
            Numbers::open(&folder.join(&name), bytes, checksums.of(&name)?)
        };
        let of_record = |name: &str| {
            let record = manifest.files.get(&format!("{prefix}{name}.bin"));
            open(name, record.map_or(0, |record| record.bytes))
        };
        let masks = || {
            Ok::<_, CorpusError>(Masked {
                ranges: of_record("masked")?,
                ends: open("masked-documents", (documents + 1) * 8)?,
            })
        };
        Ok(Self {
            tokens: open("tokens", tokens * width as u64)?,
            ends: open("documents", (documents + 1) * 8)?,
            masks: manifest.is_masked().then(masks).transpose()?,
            width,
        })
    }

    /// Returns the token ranges of a document that are not to be predicted.
    pub(crate) fn masked(&self, document: u64) -> Result<Vec<Range<u64>>, CorpusError> {
        let Some(masked) = &self.masks else {
            return Ok(Vec::new());
        };
        let ends = masked.ends.u64s(document, 2)?;
        let count = ends[1].saturating_sub(ends[0]);
        let numbers = masked.ranges.u64s(2 * ends[0], 2 * count as usize)?;
        let (ranges, _) = numbers.as_chunks::<2>();
        Ok(ranges.iter().map(|&[start, end]| start..end).collect())
    }

    /// Returns the start and the end of a document, in tokens.
    pub(crate) fn bounds(&self, document: u64) -> Result<(u64, u64), CorpusError> {
        let ends = self.ends.u64s(document, 2)?;
        Ok((ends[0], ends[1]))
    }

    /// Returns the length of each document, in order.
    pub(crate) fn lengths(
        &self,
        documents: u64,
    ) -> impl Iterator<Item = Result<u64, CorpusError>> + '_ {
        let starts = (0..documents).step_by(ENDS_AT_A_TIME as usize);
        starts.flat_map(move |start| {
            let count = ENDS_AT_A_TIME.min(documents - start) as usize;
            match self.ends.u64s(start, count + 1) {
                Ok(ends) => ends
                    .windows(2)
                    .map(|pair| match pair[1].checked_sub(pair[0]) {
                        Some(length) => Ok(length),
                        None => Err(CorpusError::damaged(
                            self.ends.path(),
                            "has documents that end before they start: prepare the corpus again (ddk prepare \
                             CONFIG --force)",
                        )),
                    })
                    .collect(),
                Err(error) => vec![Err(error)],
            }
        })
    }

    /// Returns the tokens `start..start + count`.
    pub(crate) fn slice(&self, start: u64, count: u64) -> Result<Vec<u32>, CorpusError> {
        let width = self.width;
        let bytes = self
            .tokens
            .bytes(start * width as u64, count as usize * width)?;
        let token = |token: &[u8]| {
            let mut number = [0; 4];
            number[..width].copy_from_slice(token);
            u32::from_le_bytes(number)
        };
        Ok(bytes.chunks_exact(width).map(token).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksums::{of_file, sums};

    #[test]
    fn a_document_has_any_number_of_masked_ranges() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let ranges: [&[Range<u64>]; 3] = [&[0..2, 3..4], &[], &[1..2, 3..5]];
        let mut written = Written::default();
        for masked in ranges {
            // Reopen the files, as after an interruption.
            let mut out = TokenWriter::open(folder, "", 2, true, written).unwrap();
            let document = EncodedDocument {
                tokens: vec![7; 5],
                masked: masked.to_vec(),
            };
            out.append(&document).unwrap();
            out.sync().unwrap();
            written = out.written;
        }
        let open = |name: &str| {
            let path = folder.join(name);
            let (file, blocks) = of_file(&path).unwrap();
            Numbers::open(&path, file.bytes, Blocks::new(sums(&blocks))).unwrap()
        };
        let tokens = Tokens {
            tokens: open("tokens.bin"),
            ends: open("documents.bin"),
            masks: Some(Masked {
                ranges: open("masked.bin"),
                ends: open("masked-documents.bin"),
            }),
            width: 2,
        };
        for (document, expected) in (0..).zip(ranges) {
            assert_eq!(tokens.masked(document).unwrap(), expected);
            assert_eq!(
                tokens.bounds(document).unwrap(),
                (5 * document, 5 * document + 5)
            );
        }
    }
}
