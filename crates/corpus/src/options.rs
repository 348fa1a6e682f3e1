//! Defines the options and the progress of a preparation.

use std::{fmt, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DomainSource;

/// What to prepare, and how.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The folder of the prepared domains, with one folder per domain.
    pub folder: PathBuf,
    /// The domains.
    pub domains: Vec<DomainSource>,
    /// How documents are packed into sequences.
    pub packing: Packing,
    /// Tokens per sequence.
    pub sequence_length: usize,
    /// The seed that chooses documents if a limit leaves some out.
    pub seed: u64,
    /// How to set documents aside for validation if a domain has no validation files.
    pub validation_split: ValidationSplit,
    /// Share of the documents to set aside, by a hash of their content.
    pub validation_fraction: f64,
    /// Maximum number of validation documents per domain. With `Fraction`, documents beyond it are not used at all.
    pub validation_documents: usize,
    /// Maximum share of unusable records.
    pub max_bad_fraction: f64,
    /// Bytes of text to tokenize at a time: enough to use all cores, with little memory.
    pub batch_bytes: u64,
    /// Number of documents whose hashes are held in memory at a time. Those of more documents go to temporary files.
    pub documents_in_memory: usize,
}

/// How documents become sequences of a fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Documents joined by their end tokens and cut at the sequence length; each sequence is one text.
    Concat,
    /// The same sequences, but attention does not cross documents.
    ConcatMasked,
    /// Whole documents packed with little padding, long ones split; attention does not cross documents.
    BestFit,
}

impl Packing {
    /// Whether attention stays within each document of a sequence.
    pub(crate) fn separates(self) -> bool {
        self != Self::Concat
    }
}

/// The name in configurations and file names.
impl fmt::Display for Packing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// How to set documents aside for validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ValidationSplit {
    /// The documents whose hash falls into a fraction.
    Fraction,
    /// A number of documents: those with the smallest hashes.
    Count,
}

/// The progress of a preparation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Whether the call is still waiting for another process that prepares in the same folder.
    pub waiting: bool,
    /// What is done now.
    pub phase: PreparePhase,
    /// The domain, or a list of the domains that are read together.
    pub domain: String,
    /// Bytes of source files read in a survey; bytes of text tokenized after that.
    pub bytes: u64,
    /// The number of these bytes at the end of the phase.
    pub total_bytes: u64,
}

/// The two readings of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PreparePhase {
    /// The first reading finds the documents and decides how to use each of them.
    #[default]
    Surveying,
    /// The second reading tokenizes them.
    Tokenizing,
}

/// The name in status lines.
impl fmt::Display for PreparePhase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Surveying => "surveying",
            Self::Tokenizing => "tokenizing",
        })
    }
}
