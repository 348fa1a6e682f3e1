//! Reports what a label set does without, each thing once.

use std::{
    collections::HashSet,
    fmt,
    path::{Path, PathBuf},
};

/// Something that costs labels, but does not stop a run. Displays as one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Report {
    /// Bytes that fail verification.
    Damaged {
        /// The segment, its index, or the record.
        file: PathBuf,
        /// Where the damaged entry starts, in bytes.
        offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The cache's folder has reached its limit.
    Full {
        /// The limit in bytes.
        limit: u64,
    },
    /// The system has no space for more.
    DiskFull {
        /// The set's folder.
        folder: PathBuf,
    },
}

impl Report {
    pub(crate) fn damaged(file: &Path, offset: u64, reason: impl fmt::Display) -> Self {
        Self::Damaged {
            file: file.to_owned(),
            offset,
            reason: reason.to_string(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged {
                file,
                offset,
                reason,
            } => write!(
                f,
                "{} is damaged at byte {offset} ({reason}); DDK ignores the damaged part and computes its labels again",
                file.display()
            ),
            Self::Full { limit } => write!(
                f,
                "the label cache has reached its limit of {limit} bytes; DDK continues without storing more labels"
            ),
            Self::DiskFull { folder } => write!(
                f,
                "the disk that holds {} is full; DDK continues without storing more labels",
                folder.display()
            ),
        }
    }
}

/// Reports to take, and all reports so far.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    new: Vec<Report>,
    seen: HashSet<Report>,
}

impl Reports {
    pub(crate) fn add(&mut self, report: Report) {
        if self.seen.insert(report.clone()) {
            self.new.push(report);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.new)
    }
}
