//! Why a run ended without a result.

use crate::worker::Exit;

/// An error of a run; it names the part and the cause.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A part that could not be started; nothing was trained.
    #[error("{part} could not be started: {cause}")]
    Start {
        /// The part: `teacher-0`, `student`, ….
        part: String,
        /// What was wrong.
        cause: String,
    },
    /// A part that failed and could not be healed. The run goes on from its last checkpoint when it is started again.
    #[error("{part} failed: {cause}")]
    Part {
        /// The part.
        part: String,
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
