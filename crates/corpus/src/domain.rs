//! A prepared domain, mapped for reading.

use std::path::{Path, PathBuf};

use crate::{
    CorpusError, Row,
    manifest::{MANIFEST, Manifest},
    rows::{RowIndex, index_file},
    store::Tokens,
};

/// A prepared domain: its rows in constant time, its validation documents. Opening reads the manifest and the sizes of the
/// files, nothing else.
#[derive(Debug)]
pub struct PreparedDomain {
    name: String,
    folder: PathBuf,
    manifest: Manifest,
    tokens: Tokens,
    validation: Tokens,
    index: RowIndex,
    sequence_length: usize,
}

impl PreparedDomain {
    /// Opens `corpus/name` for rows of `sequence_length` tokens.
    pub fn open(corpus: &Path, name: &str, sequence_length: usize) -> Result<Self, CorpusError> {
        let folder = corpus.join(name);
        let not_prepared = || CorpusError::NotPrepared {
            domain: name.to_owned(),
            folder: corpus.to_owned(),
        };
        let manifest = Manifest::read(&folder)?.ok_or_else(not_prepared)?;
        let width = manifest.token_bytes;
        if width != 2 && width != 4 {
            let path = folder.join(MANIFEST);
            return Err(CorpusError::damaged(
                &path,
                format!("token_bytes is {width}"),
            ));
        }
        let index = index_file(&folder, sequence_length);
        if !index.exists() {
            return Err(not_prepared());
        }
        Ok(Self {
            name: name.to_owned(),
            tokens: Tokens::open(&folder, "", width, manifest.tokens, manifest.documents)?,
            validation: Tokens::open(
                &folder,
                "validation-",
                width,
                manifest.validation_tokens,
                manifest.validation_documents,
            )?,
            index: RowIndex::open(&index)?,
            folder,
            manifest,
            sequence_length,
        })
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Rows of a pass.
    pub fn rows(&self) -> u64 {
        self.index.rows
    }

    /// Tokens to train on.
    pub fn tokens(&self) -> u64 {
        self.manifest.tokens
    }

    /// Hash of the data files (training and validation).
    pub fn content_hash(&self) -> &str {
        &self.manifest.content_hash
    }

    /// Hash of the tokenizer that made the tokens.
    pub fn tokenizer_hash(&self) -> &str {
        &self.manifest.made_from.tokenizer_hash
    }

    /// A row by its number.
    pub fn row(&self, row: u64) -> Result<Row, CorpusError> {
        let damaged = || {
            let path = index_file(&self.folder, self.sequence_length);
            CorpusError::damaged(&path, format!("row {row} does not fit the token file"))
        };
        let spans = self.index.spans(row).ok_or_else(damaged)?;
        let mut tokens = Vec::with_capacity(self.sequence_length);
        for span in &spans {
            let (start, _) = self.tokens.bounds(span.document).ok_or_else(damaged)?;
            let part = self.tokens.slice(start + span.offset, span.tokens);
            tokens.extend(part.ok_or_else(damaged)?);
        }
        Ok(Row { row, tokens, spans })
    }

    /// The validation documents, each cut at the sequence length.
    pub fn validation(&self) -> Result<Vec<Vec<u32>>, CorpusError> {
        let damaged = || {
            let path = self.folder.join("validation-documents.bin");
            CorpusError::damaged(&path, "does not fit validation-tokens.bin")
        };
        (0..self.manifest.validation_documents)
            .map(|document| {
                let (start, end) = self.validation.bounds(document).ok_or_else(damaged)?;
                let count = (end - start).min(self.sequence_length as u64);
                self.validation.slice(start, count).ok_or_else(damaged)
            })
            .collect()
    }
}
