//! Writes tokens and document ends to files as a stream, and reads them piece by piece.

use std::{
    fs::File,
    io::{BufWriter, Write},
    iter,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    CorpusError,
    checksums::{self, BLOCK_BYTES, Blocks, CHECKSUMS_FILE},
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
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(failed())?;
        if file.metadata().map_err(failed())?.len() < length {
            let reason = "is shorter than its progress.json says";
            return Err(CorpusError::lost(&path, reason));
        }
        file.set_len(length).map_err(failed())?;
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
        let synced = self.out.flush().and_then(|()| {
            ddk_files::step("sync", &self.path);
            self.out.get_ref().sync_all()
        });
        synced.map_err(CorpusError::io("write", &self.path))
    }
}

/// The items of all documents in one file. Another one has the number of items before each document, and the total.
#[derive(Debug)]
struct Lists<T> {
    items: T,
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
    tokens: Lists<NumberWriter>,
    /// Start and end of each range, counted from the document's start; `None` without a loss mask.
    masked: Option<Lists<NumberWriter>>,
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
        let lists = |items: &str, length, ends: &str| {
            let is_new = written.documents == 0;
            let count = if is_new { 0 } else { written.documents + 1 };
            let mut lists = Lists {
                items: open(items, length)?,
                ends: open(ends, 8 * count)?,
            };
            if is_new {
                lists.ends.write(&0_u64.to_le_bytes())?;
            }
            Ok::<_, CorpusError>(lists)
        };
        let open_masked = || lists("masked", 16 * written.masked, "masked-documents");
        Ok(Self {
            tokens: lists("tokens", written.tokens * width as u64, "documents")?,
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
        self.tokens.items.write(&bytes)?;
        self.written.tokens += document.tokens.len() as u64;
        self.written.documents += 1;
        if let Some(masked) = &mut self.masked {
            self.written.masked += document.masked.len() as u64;
            for range in &document.masked {
                masked.items.write(&range.start.to_le_bytes())?;
                masked.items.write(&range.end.to_le_bytes())?;
            }
            masked.ends.write(&self.written.masked.to_le_bytes())?;
        }
        let end = self.written.tokens.to_le_bytes();
        self.tokens.ends.write(&end)
    }

    /// Makes all files durable.
    pub(crate) fn sync(&mut self) -> Result<(), CorpusError> {
        for lists in iter::once(&mut self.tokens).chain(&mut self.masked) {
            lists.items.sync()?;
            lists.ends.sync()?;
        }
        Ok(())
    }
}

/// An open file of little-endian numbers. It is read, not mapped: if the disk fails, a read returns an error with
/// file and offset, while a map would kill the process. The system caches frequent reads either way. The first read
/// of a block compares it with its checksum.
#[derive(Debug)]
pub(crate) struct Numbers {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Bytes of the numbers. This is the length of the file, except for a row index, where checksums follow.
    pub(crate) length: u64,
    pub(crate) blocks: Blocks,
}

impl Numbers {
    /// Opens a file that must have `length` bytes.
    pub(crate) fn open(path: &Path, length: u64, blocks: Blocks) -> Result<Self, CorpusError> {
        let failed = || CorpusError::io("read", path);
        let file = File::open(path).map_err(failed())?;
        let found = file.metadata().map_err(failed())?.len();
        if found != length {
            let reason = format!("has {found} bytes, expected {length}");
            return Err(CorpusError::lost(path, reason));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            length,
            blocks,
        })
    }

    /// Returns `count` bytes from `offset` on.
    pub(crate) fn bytes(&self, offset: u64, count: usize) -> Result<Vec<u8>, CorpusError> {
        // Check before allocating: the offset and the count may come from damaged data.
        let end = offset.saturating_add(count as u64);
        if end > self.length {
            let reason = format!("ends before byte {offset} + {count}");
            return Err(CorpusError::lost(&self.path, reason));
        }
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        if blocks.clone().all(|block| self.blocks.is_verified(block)) {
            return self.raw(offset, count);
        }
        // Return the same bytes that were compared.
        let (mut bytes, start) = (Vec::new(), (offset % BLOCK_BYTES) as usize);
        for block in blocks {
            bytes.extend(self.block(block)?);
        }
        bytes.truncate(start + count);
        Ok(bytes.split_off(start))
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
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|source| CorpusError::Unreadable {
            path: self.path.clone(),
            offset,
            source,
        })?;
        Ok(bytes)
    }

    /// Returns `count` numbers from number `index` on.
    pub(crate) fn u64s(&self, index: u64, count: usize) -> Result<Vec<u64>, CorpusError> {
        let bytes = self.bytes(8 * index, 8 * count)?;
        let (numbers, _) = bytes.as_chunks::<8>();
        Ok(numbers.iter().copied().map(u64::from_le_bytes).collect())
    }
}

impl Lists<Numbers> {
    /// Returns where the items of a document start and end.
    fn bounds(&self, document: u64) -> Result<(u64, u64), CorpusError> {
        let ends = self.ends.u64s(document, 2)?;
        Ok((ends[0], ends[1]))
    }
}

/// Documents as [`TokenWriter`] wrote them.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokens: Lists<Numbers>,
    /// Token ranges that are not to be predicted; `None` without a loss mask.
    masked: Option<Lists<Numbers>>,
    width: usize,
}

impl Tokens {
    /// `prefix`: "" for training documents, "validation-" for validation documents.
    pub(crate) fn open(
        folder: &Path,
        prefix: &str,
        manifest: &Manifest,
    ) -> Result<Self, CorpusError> {
        let (tokens, documents) = match prefix {
            "" => (manifest.tokens, manifest.documents),
            _ => (manifest.validation_tokens, manifest.validation_documents),
        };
        let width = manifest.token_bytes;
        let checksums = checksums::read(folder, manifest)?;
        let open = |name: &str, bytes| {
            let name = format!("{prefix}{name}.bin");
            let lacking = || {
                let reason = format!("has no checksums of {name}");
                CorpusError::lost(&folder.join(CHECKSUMS_FILE), reason)
            };
            let sums = checksums.get(&name).ok_or_else(lacking)?;
            Numbers::open(&folder.join(&name), bytes, Blocks::new(sums))
        };
        let lists = |items: &str, bytes, ends: &str| {
            Ok::<_, CorpusError>(Lists {
                items: open(items, bytes)?,
                ends: open(ends, (documents + 1) * 8)?,
            })
        };
        let masked = || {
            let record = manifest.files.get(&format!("{prefix}masked.bin"));
            let bytes = record.map_or(0, |record| record.bytes);
            lists("masked", bytes, "masked-documents")
        };
        Ok(Self {
            tokens: lists("tokens", tokens * width as u64, "documents")?,
            masked: manifest.is_masked().then(masked).transpose()?,
            width,
        })
    }

    /// Returns the token ranges of a document that are not to be predicted.
    pub(crate) fn masked(&self, document: u64) -> Result<Vec<Range<u64>>, CorpusError> {
        let Some(masked) = &self.masked else {
            return Ok(Vec::new());
        };
        let (start, end) = masked.bounds(document)?;
        let count = end.saturating_sub(start);
        let numbers = masked.items.u64s(2 * start, 2 * count as usize)?;
        let (ranges, _) = numbers.as_chunks::<2>();
        Ok(ranges.iter().map(|&[start, end]| start..end).collect())
    }

    /// Returns the start and the end of a document, in tokens.
    pub(crate) fn bounds(&self, document: u64) -> Result<(u64, u64), CorpusError> {
        self.tokens.bounds(document)
    }

    /// Returns the length of each document, in order.
    pub(crate) fn lengths(&self, documents: u64) -> Result<Vec<u64>, CorpusError> {
        let mut lengths = Vec::with_capacity(documents as usize);
        self.each_length(documents, |_, length| {
            lengths.push(length);
            Ok(())
        })?;
        Ok(lengths)
    }

    /// Passes the number and the length of each document to `each`, in order.
    pub(crate) fn each_length(
        &self,
        documents: u64,
        mut each: impl FnMut(u64, u64) -> Result<(), CorpusError>,
    ) -> Result<(), CorpusError> {
        const PIECE: u64 = BLOCK_BYTES / 8;
        let ends = &self.tokens.ends;
        let reason = "has documents that end before they start";
        let lost = || CorpusError::lost(&ends.path, reason);
        let mut start = 0;
        for first in (0..documents).step_by(PIECE as usize) {
            let count = PIECE.min(documents - first);
            let piece = ends.u64s(first + 1, count as usize)?;
            for (document, end) in (first..).zip(piece) {
                each(document, end.checked_sub(start).ok_or_else(lost)?)?;
                start = end;
            }
        }
        Ok(())
    }

    /// Returns the number of tokens of all documents.
    pub(crate) fn total(&self, documents: u64) -> Result<u64, CorpusError> {
        Ok(self.tokens.ends.u64s(documents, 1)?[0])
    }

    /// Returns the tokens `start..start + count`.
    pub(crate) fn slice(&self, start: u64, count: u64) -> Result<Vec<u32>, CorpusError> {
        let width = self.width;
        let (start, count) = (start * width as u64, count as usize * width);
        let bytes = self.tokens.items.bytes(start, count)?;
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
    use crate::checksums::of_file;

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
            Numbers::open(&path, file.bytes, Blocks::new(&blocks)).unwrap()
        };
        let tokens = Tokens {
            tokens: Lists {
                items: open("tokens.bin"),
                ends: open("documents.bin"),
            },
            masked: Some(Lists {
                items: open("masked.bin"),
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
