//! What is to be prepared, and how far it is.

use std::{fmt, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DomainSource;

/// What is to be prepared, and how.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Where the prepared domains are, one folder each.
    pub folder: PathBuf,
    /// The domains.
    pub domains: Vec<DomainSource>,
    /// How documents are put into rows.
    pub packing: Packing,
    /// Tokens of a row.
    pub sequence_length: usize,
    /// Chooses the documents where a limit leaves some out.
    pub seed: u64,
    /// How documents are set aside for validation, where a domain has no files of its own for it.
    pub validation_split: ValidationSplit,
    /// Share of the documents that is set aside, by a hash of their content.
    pub validation_fraction: f64,
    /// Maximum validation documents per domain; by share, those over it are used for nothing.
    pub validation_documents: usize,
    /// Share of records that may be unusable.
    pub max_bad_fraction: f64,
    /// Bytes of text that are tokenized at a time: enough for all cores, little memory.
    pub batch_bytes: u64,
}

/// How documents become rows of a fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Documents joined by their end tokens and cut at the length; a row is one text.
    Concat,
    /// The same rows, but the documents in a row see nothing of each other.
    ConcatMasked,
    /// Whole documents put together with little padding, long ones split; they see nothing of each other.
    BestFit,
}

impl Packing {
    /// Whether the documents in a row see nothing of each other.
    pub(crate) fn separates(self) -> bool {
        self != Self::Concat
    }
}

/// The name in configurations, and in the names of files.
impl fmt::Display for Packing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// How documents are set aside for validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ValidationSplit {
    /// Those whose hash falls into a fraction.
    Fraction,
    /// A number of them, those with the smallest hashes.
    Count,
}

/// How far it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether nothing is done yet, because another process prepares in the same folder.
    pub waiting: bool,
    /// The domain.
    pub domain: String,
    /// Bytes of text tokenized.
    pub bytes: u64,
    /// Of how many.
    pub total_bytes: u64,
}
