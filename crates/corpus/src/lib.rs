//! From sources to rows: files to documents, documents to token files, token files to rows of a fixed length.
//!
//! [`prepare`] does the work once and leaves one folder per domain: tokens, document index, row index, validation
//! documents and a manifest that says what they were made from. Training only reads: [`PreparedDomain`] maps
//! a folder and gives any row in constant time; [`RowReader`] gives the rows of each pass in an order drawn
//! from (seed, domain, pass), so a cursor is two numbers. No libtorch in here.

mod checksums;
#[cfg(test)]
mod crash_tests;
mod documents;
mod domain;
mod error;
mod format;
mod lock;
mod manifest;
mod options;
#[cfg(feature = "parquet")]
mod parquet;
mod prepare;
mod quarantine;
mod reader;
mod rows;
mod sample;
mod sequence;
mod source;
mod stale;
mod store;
mod survey;
mod template;
mod tokenize;
mod tokenizer;
mod train_tokenizer;
mod writing;

pub use domain::{PreparedDomain, RowOptions};
pub use error::{CorpusError, RefusedFile};
pub use format::{FileFormat, TEXT_EXTENSIONS, TEXT_NAMES};
pub use options::{Packing, PrepareOptions, Progress, ValidationSplit};
pub use prepare::{DomainReport, as_prepared, prepare, verify};
pub use quarantine::{QUARANTINE_FILE, QUARANTINED_PER_FILE, Quarantined};
pub use reader::{Cursor, RowReader, Sample};
pub use sample::{FirstRecords, field_values, first_document, sample};
pub use sequence::{Sequence, Span};
pub use source::{DomainSource, Limits};
pub use stale::{Stale, stale};
pub use template::Template;
pub use tokenizer::{TokenizerFolder, compatible};
pub use train_tokenizer::{END_TOKEN, train_tokenizer};
