//! Why a run ended without a result.

use crate::worker::{Exit, WorkerId};

/// An error of a run; it names the worker and the cause.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A worker could not be started; nothing was trained.
    #[error("{worker} could not be started: {cause}")]
    Start {
        /// The worker.
        worker: WorkerId,
        /// What was wrong.
        cause: String,
    },
    /// A worker failed beyond repair. The next start resumes the run from its last checkpoint.
    #[error("{worker} failed: {cause}")]
    Worker {
        /// The worker.
        worker: WorkerId,
        /// How it ended.
        cause: Exit,
    },
    /// The run's actors ended without saying why.
    #[error("the run ended without a result: {0}")]
    Lost(String),
}

/// An error with its causes on one line, each once.
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
