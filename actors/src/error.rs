//! Why a run ended without a result.

use std::{error::Error, fmt::Display, iter::successors};

use crate::worker::{Exit, WorkerId};

/// Why a run failed: the worker and the cause.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A worker could not be started, so nothing was trained.
    #[error("{worker} could not be started: {cause}")]
    Start {
        /// The worker.
        worker: WorkerId,
        /// What went wrong.
        cause: String,
    },
    /// A worker failed beyond recovery. The next start resumes the run from its last checkpoint.
    #[error("{worker} failed: {cause}")]
    Worker {
        /// The worker.
        worker: WorkerId,
        /// How it ended.
        cause: Exit,
    },
    /// A worker of one of several ranks failed. The ranks cannot rewind by themselves.
    #[error(
        "{worker} of rank {rank} failed: {cause}; all ranks must start again from the last checkpoint, which torchrun \
         does with --max-restarts"
    )]
    Rank {
        /// The rank.
        rank: usize,
        /// The worker.
        worker: WorkerId,
        /// How it ended.
        cause: Exit,
    },
    /// The run's actors ended without a reason.
    #[error("the run ended without a result: {0}")]
    Lost(String),
}

impl RunError {
    pub(crate) fn lost(reason: impl Display) -> Self {
        Self::Lost(reason.to_string())
    }
}

/// An error and its causes on one line, without repetitions.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    for cause in successors(error.source(), |&cause| cause.source()) {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            text.push_str(&format!(": {cause}"));
        }
    }
    text
}
