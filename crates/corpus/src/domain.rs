//! Reads the sequences and the validation documents of a prepared domain.

use std::path::Path;

use crate::{
    CorpusError, Packing, Sequence, Span,
    manifest::{MANIFEST, Manifest},
    packing::{RowIndex, index_file},
    store::Tokens,
};

/// A prepared domain, open for reading. It returns any sequence in constant time, and the validation documents.
/// Opening reads only the manifest, the checksums and the file sizes. A process compares a block of a file with its
/// checksum when it first reads the block.
#[derive(Debug)]
pub struct PreparedDomain {
    name: String,
    manifest: Manifest,
    tokens: Tokens,
    validation: Tokens,
    index: RowIndex,
    options: SequenceOptions,
}

/// How to read the sequences of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceOptions {
    /// How documents are packed into sequences.
    pub packing: Packing,
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// Whether the loss leaves out prompts.
    pub completion_only_loss: bool,
}

impl PreparedDomain {
    /// Opens `corpus/name` to read sequences of the given packing and length.
    ///
    /// # Errors
    /// If the domain is not prepared with this packing and length, or if one of its files cannot be read or is damaged.
    pub fn open(corpus: &Path, name: &str, options: SequenceOptions) -> Result<Self, CorpusError> {
        let folder = corpus.join(name);
        let not_prepared = || CorpusError::NotPrepared {
            domain: name.to_owned(),
            folder: corpus.to_owned(),
        };
        let manifest = Manifest::read(&folder)?.ok_or_else(not_prepared)?;
        let width = manifest.token_bytes;
        if width != 2 && width != 4 {
            let reason = format!("token_bytes is {width}, expected 2 or 4");
            return Err(CorpusError::damaged(&folder.join(MANIFEST), reason));
        }
        let index = index_file(&folder, options.packing, options.sequence_length);
        if !index.exists() {
            return Err(not_prepared());
        }
        Ok(Self {
            name: name.to_owned(),
            tokens: Tokens::open(&folder, "", &manifest)?,
            validation: Tokens::open(&folder, "validation-", &manifest)?,
            index: RowIndex::open(&index)?,
            manifest,
            options,
        })
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sequences per epoch.
    pub fn rows(&self) -> u64 {
        self.index.rows
    }

    /// Number of validation documents.
    pub fn validation_documents(&self) -> u64 {
        self.manifest.validation_documents
    }

    /// Whether its documents have parts that the loss can exclude.
    pub fn has_mask(&self) -> bool {
        self.manifest.is_masked()
    }

    /// Number of training tokens.
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

    /// Returns the training sequence with this number.
    ///
    /// # Errors
    /// If there is no such sequence, or if a prepared file cannot be read or is damaged.
    pub fn sequence(&self, number: u64) -> Result<Sequence, CorpusError> {
        let spans = self.index.spans(number)?;
        let mut sequence = Sequence {
            number,
            tokens: Vec::with_capacity(self.options.sequence_length),
            ..Sequence::default()
        };
        for &span in &spans {
            self.append(&mut sequence, &self.tokens, span)?;
            if self.options.packing.separates() {
                sequence.document_lengths.push(span.tokens as u32);
            }
        }
        Ok(Sequence { spans, ..sequence })
    }

    /// Appends a span of a document to a sequence.
    fn append(
        &self,
        sequence: &mut Sequence,
        documents: &Tokens,
        span: Span,
    ) -> Result<(), CorpusError> {
        let (start, _) = documents.bounds(span.document)?;
        if self.options.completion_only_loss {
            let place = sequence.tokens.len() as u64;
            let end_of_span = span.offset + span.tokens;
            for range in documents.masked(span.document)? {
                let (start, end) = (range.start.max(span.offset), range.end.min(end_of_span));
                if start < end {
                    let in_sequence = |of_document: u64| place + of_document - span.offset;
                    sequence.masked.push(in_sequence(start)..in_sequence(end));
                }
            }
        }
        let tokens = documents.slice(start + span.offset, span.tokens)?;
        sequence.tokens.extend(tokens);
        Ok(())
    }

    /// Number of tokens of each training document, in order, including the end token.
    ///
    /// # Errors
    /// If a prepared file cannot be read or is damaged.
    pub fn document_lengths(&self) -> Result<Vec<u64>, CorpusError> {
        self.tokens.lengths(self.manifest.documents)
    }

    /// Returns the validation documents, each cut at the sequence length.
    ///
    /// # Errors
    /// If a prepared file cannot be read or is damaged.
    pub fn validation(&self) -> Result<Vec<Sequence>, CorpusError> {
        let of = |document| {
            let (start, end) = self.validation.bounds(document)?;
            let length = end.saturating_sub(start);
            let span = Span {
                document,
                offset: 0,
                tokens: length.min(self.options.sequence_length as u64),
            };
            let mut sequence = Sequence {
                number: document,
                ..Sequence::default()
            };
            self.append(&mut sequence, &self.validation, span)?;
            Ok(sequence)
        };
        (0..self.manifest.validation_documents).map(of).collect()
    }
}
