//! Tokens and document ends in files: written in a stream, read through a map.

use std::{
    fs::File,
    io::{BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::{CorpusError, manifest::Manifest};

/// A file of little-endian numbers being written.
pub(crate) struct NumberWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

impl NumberWriter {
    pub(crate) fn create(path: PathBuf) -> Result<Self, CorpusError> {
        Self::open_at(path, 0)
    }

    /// Goes on after the first `length` bytes of a file; what is behind them is cut off.
    pub(crate) fn open_at(path: PathBuf, length: u64) -> Result<Self, CorpusError> {
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
                "is shorter than its progress.json says: prepare it again (--force)",
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
        self.out
            .write_all(bytes)
            .map_err(CorpusError::io("write", &self.path))
    }

    /// Makes what was written durable.
    pub(crate) fn sync(&mut self) -> Result<(), CorpusError> {
        self.out
            .flush()
            .and_then(|()| self.out.get_ref().sync_all())
            .map_err(CorpusError::io("write", &self.path))
    }
}

/// A document's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EncodedDocument {
    pub(crate) tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub(crate) prompt: u64,
}

/// What a [`TokenWriter`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) tokens: u64,
    pub(crate) documents: u64,
}

/// A sequence of documents' tokens, with the place where each ends, and the tokens of each prompt where there are any:
/// `NAMEtokens.bin`, `NAMEdocuments.bin`, `NAMEprompts.bin`.
pub(crate) struct TokenWriter {
    tokens: NumberWriter,
    documents: NumberWriter,
    prompts: Option<NumberWriter>,
    width: usize,
    pub(crate) written: Written,
}

impl TokenWriter {
    /// Goes on after what was written. `width`: bytes of a token, 2 or 4.
    pub(crate) fn open(
        folder: &Path,
        prefix: &str,
        width: usize,
        prompts: bool,
        written: Written,
    ) -> Result<Self, CorpusError> {
        let open = |name: &str, length| {
            NumberWriter::open_at(folder.join(format!("{prefix}{name}.bin")), length)
        };
        let ends = match written.documents {
            0 => 0,
            count => 8 * (count + 1),
        };
        let mut documents = open("documents", ends)?;
        if ends == 0 {
            documents.write(&0_u64.to_le_bytes())?;
        }
        Ok(Self {
            tokens: open("tokens", written.tokens * width as u64)?,
            documents,
            prompts: match prompts {
                true => Some(open("prompts", 8 * written.documents)?),
                false => None,
            },
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
        if let Some(prompts) = &mut self.prompts {
            prompts.write(&document.prompt.to_le_bytes())?;
        }
        self.documents.write(&self.written.tokens.to_le_bytes())
    }

    /// Makes all files durable.
    pub(crate) fn sync(&mut self) -> Result<(), CorpusError> {
        self.tokens.sync()?;
        self.documents.sync()?;
        self.prompts.as_mut().map_or(Ok(()), NumberWriter::sync)
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
    prompts: Option<Numbers>,
    width: usize,
}

impl Tokens {
    /// `prefix`: "" for what is trained on, "validation-" for what is not.
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
        let path = |name: &str| folder.join(format!("{prefix}{name}.bin"));
        let prompts = manifest.made_from.prompt.is_some();
        Ok(Self {
            tokens: Numbers::open(&path("tokens"), tokens * width as u64)?,
            ends: Numbers::open(&path("documents"), (documents + 1) * 8)?,
            prompts: match prompts {
                true => Some(Numbers::open(&path("prompts"), documents * 8)?),
                false => None,
            },
            width,
        })
    }

    /// Tokens of a document's prompt.
    pub(crate) fn prompt(&self, document: u64) -> u64 {
        let prompts = self.prompts.as_ref();
        prompts
            .and_then(|prompts| prompts.u64(document))
            .unwrap_or(0)
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
