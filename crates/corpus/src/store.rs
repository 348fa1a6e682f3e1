//! Tokens and document ends in files: written in a stream, read through a map.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use memmap2::Mmap;

use crate::CorpusError;

/// A file of little-endian numbers being written.
pub(crate) struct NumberWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl NumberWriter {
    pub(crate) fn create(path: PathBuf) -> Result<Self, CorpusError> {
        let file = File::create(&path).map_err(CorpusError::io("create", &path))?;
        Ok(Self {
            out: BufWriter::with_capacity(1 << 18, file),
            path,
        })
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CorpusError> {
        self.out
            .write_all(bytes)
            .map_err(CorpusError::io("write", &self.path))
    }

    /// Makes the file durable.
    pub(crate) fn finish(mut self) -> Result<(), CorpusError> {
        self.out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all())
            .map_err(CorpusError::io("write", &self.path))
    }
}

/// A sequence of documents' tokens, with the place where each ends: `NAMEtokens.bin` and `NAMEdocuments.bin`.
pub(crate) struct TokenWriter {
    tokens: NumberWriter,
    documents: NumberWriter,
    width: usize,
    pub(crate) token_count: u64,
    pub(crate) document_count: u64,
}

impl TokenWriter {
    /// `width`: bytes of a token, 2 or 4.
    pub(crate) fn create(folder: &Path, prefix: &str, width: usize) -> Result<Self, CorpusError> {
        let mut documents = NumberWriter::create(folder.join(format!("{prefix}documents.bin")))?;
        documents.write(&0_u64.to_le_bytes())?;
        Ok(Self {
            tokens: NumberWriter::create(folder.join(format!("{prefix}tokens.bin")))?,
            documents,
            width,
            token_count: 0,
            document_count: 0,
        })
    }

    pub(crate) fn append(&mut self, tokens: &[u32]) -> Result<(), CorpusError> {
        let mut bytes = Vec::with_capacity(tokens.len() * self.width);
        for token in tokens {
            bytes.extend_from_slice(&token.to_le_bytes()[..self.width]);
        }
        self.tokens.write(&bytes)?;
        self.token_count += tokens.len() as u64;
        self.document_count += 1;
        self.documents.write(&self.token_count.to_le_bytes())
    }

    pub(crate) fn finish(self) -> Result<(), CorpusError> {
        self.tokens.finish()?;
        self.documents.finish()
    }
}

/// A mapped file of little-endian numbers.
#[derive(Debug)]
pub(crate) struct Numbers {
    map: Option<Mmap>,
}

impl Numbers {
    /// Maps a file that must have `bytes` bytes: reading past the end of a cut file would kill the process.
    pub(crate) fn open(path: &Path, bytes: u64) -> Result<Self, CorpusError> {
        let file = File::open(path).map_err(CorpusError::io("read", path))?;
        let found = file
            .metadata()
            .map_err(CorpusError::io("read", path))?
            .len();
        if found != bytes {
            return Err(CorpusError::damaged(
                path,
                format!("has {found} bytes, expected {bytes}: prepare the corpus again"),
            ));
        }
        if bytes == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only, and prepared files are replaced by rename, never changed in place.
        let map = unsafe { Mmap::map(&file) }.map_err(CorpusError::io("read", path))?;
        Ok(Self { map: Some(map) })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// The `index`th u64.
    pub(crate) fn u64(&self, index: u64) -> Option<u64> {
        let start = usize::try_from(index).ok()?.checked_mul(8)?;
        let bytes = self.bytes().get(start..start + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// Documents as [`TokenWriter`] wrote them.
#[derive(Debug)]
pub(crate) struct Tokens {
    tokens: Numbers,
    ends: Numbers,
    width: usize,
}

impl Tokens {
    pub(crate) fn open(
        folder: &Path,
        prefix: &str,
        width: usize,
        token_count: u64,
        document_count: u64,
    ) -> Result<Self, CorpusError> {
        let path = |name: &str| folder.join(format!("{prefix}{name}"));
        Ok(Self {
            tokens: Numbers::open(&path("tokens.bin"), token_count * width as u64)?,
            ends: Numbers::open(&path("documents.bin"), (document_count + 1) * 8)?,
            width,
        })
    }

    /// Where a document starts and ends, in tokens.
    pub(crate) fn bounds(&self, document: u64) -> Option<(u64, u64)> {
        Some((self.ends.u64(document)?, self.ends.u64(document + 1)?))
    }

    /// The tokens `start..start + count`.
    pub(crate) fn slice(&self, start: u64, count: u64) -> Option<Vec<u32>> {
        let start = usize::try_from(start).ok()? * self.width;
        let end = start + usize::try_from(count).ok()? * self.width;
        let bytes = self.tokens.bytes().get(start..end)?;
        Some(
            bytes
                .chunks_exact(self.width)
                .map(|token| {
                    let mut number = [0; 4];
                    number[..self.width].copy_from_slice(token);
                    u32::from_le_bytes(number)
                })
                .collect(),
        )
    }
}
