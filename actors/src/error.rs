//! Why a run ended without a result.

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
    /// The run's actors ended without a reason.
    #[error("the run ended without a result: {0}")]
    Lost(String),
}

/// An error and its causes on one line, without repetitions.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(&format!(": {cause_text}"));
        }
        source = cause.source();
    }
    text
}
