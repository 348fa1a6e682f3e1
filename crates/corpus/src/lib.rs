//! Turns sources into sequences: files to documents, documents to token files, token files to sequences of a fixed
//! length.
//!
//! [`prepare`] runs once and writes one folder per domain: tokens, document index, sequence index, validation
//! documents, and a manifest of its inputs. Training only reads. [`PreparedDomain`] maps a folder and returns any
//! sequence in constant time. [`SequenceReader`] returns the sequences of each epoch in an order drawn from (seed,
//! domain, epoch), so its cursor is two numbers. This crate does not depend on libtorch.
//!
//! ```
//! use ddk_corpus::{FileFormat, Template};
//!
//! let template = Template::parse("{question}\n{answer}").unwrap();
//! assert_eq!(template.source(), "{question}\n{answer}");
//! assert!(Template::parse("{question").is_err());
//! # let _ = FileFormat::Jsonl;
//! ```

mod arrow;
mod blocks;
mod chat;
mod checksums;
mod choice;
#[cfg(test)]
mod crash_tests;
mod detect;
mod document;
mod documents;
mod domain;
mod error;
mod format;
mod group;
mod json;
mod lock;
mod manifest;
mod mask;
mod megatron;
mod options;
mod packing;
mod parquet;
mod prepare;
mod pretokenized;
mod quarantine;
mod raw;
mod records;
mod sample;
mod sequence;
mod sequence_reader;
mod shape;
mod source;
mod spool;
mod stale;
mod store;
mod survey;
mod table;
mod template;
mod tokenize;
mod tokenizer;
mod train_tokenizer;
mod writing;

pub use chat::{Chat, ChatTemplate, Doubts};
pub use detect::{Detected, detect, detect_in};
pub use domain::{PreparedDomain, SequenceOptions};
pub use error::CorpusError;
pub use format::{FileFormat, TEXT_EXTENSIONS, TEXT_NAMES};
pub use options::{Packing, PrepareOptions, PreparePhase, Progress, ValidationSplit};
pub use prepare::{DomainReport, as_prepared, prepare, verify};
pub use quarantine::{QUARANTINE_FILE, QUARANTINED_PER_FILE, Quarantined};
pub use sample::{FirstRecords, field_values, first_document, sample};
pub use sequence::{Sequence, Span};
pub use sequence_reader::{Cursor, Sample, SequenceReader};
pub use shape::Shape;
pub use source::{DomainSource, Limits, TokenSource};
pub use stale::{Stale, stale};
pub use template::Template;
pub use tokenizer::{TokenizerFolder, compatible};
pub use train_tokenizer::{END_TOKEN, train_tokenizer};
