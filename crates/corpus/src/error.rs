//! What can be wrong with a corpus.

use std::{
    io,
    path::{Path, PathBuf},
};

/// An error of the corpus; each says what it is about.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A file that cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// "read", "write", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A place of a prepared file that cannot be read.
    #[error("cannot read {} at byte {offset}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Where, in bytes.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A pattern that matches nothing.
    #[error("domain `{domain}`: `{pattern}` matches no file")]
    NoFiles {
        /// The domain.
        domain: String,
        /// The file, folder or glob of the configuration.
        pattern: String,
    },
    /// A glob that is not one.
    #[error("domain `{domain}`: `{pattern}` is not a pattern: {reason}")]
    BadPattern {
        /// The domain.
        domain: String,
        /// What was written.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A domain without enough text.
    #[error("domain `{domain}` {what}")]
    TooLittle {
        /// The domain.
        domain: String,
        /// What it lacks, and what to change.
        what: String,
    },
    /// More records than allowed could not be used.
    #[error("domain `{domain}`: {bad} of {records} records cannot be used, more than corpus.max_bad_share = {limit} allows; most are in {}, the first at line {line}: {reason}", path.display())]
    TooManyBad {
        /// The domain.
        domain: String,
        /// Records that cannot be used.
        bad: u64,
        /// All records.
        records: u64,
        /// The share allowed.
        limit: f64,
        /// The source with most of them.
        path: PathBuf,
        /// Its first bad line.
        line: u64,
        /// What is wrong there.
        reason: String,
    },
    /// Files that cannot be read to their end hold more than is allowed.
    #[error("domain `{domain}`: {:.1} % of its files' bytes are in files that cannot be read to their end, more than corpus.max_bad_share = {limit} allows; the first is {} at line {line}: {reason}", share * 100.0, path.display())]
    TooMuchDamaged {
        /// The domain.
        domain: String,
        /// Share of the bytes.
        share: f64,
        /// The share allowed.
        limit: f64,
        /// The first such file.
        path: PathBuf,
        /// The line, or row, that could not be read.
        line: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A domain that has not been prepared.
    #[error("domain `{domain}` is not prepared in {}", folder.display())]
    NotPrepared {
        /// The domain.
        domain: String,
        /// The corpus' folder.
        folder: PathBuf,
    },
    /// The receiving side of a preparation ended first; its own error is the one that is told.
    #[error("the preparation was given up")]
    Interrupted,
    /// A prepared file that is not as its manifest says.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tokenizer that cannot be used.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// Its folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two tokenizers that give one id to two tokens.
    #[error("the tokenizers of {} and {} differ: {difference}", teacher.display(), student.display())]
    TokenizersDiffer {
        /// The teacher's folder.
        teacher: PathBuf,
        /// The student's folder.
        student: PathBuf,
        /// The first difference.
        difference: String,
    },
}

impl CorpusError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}
