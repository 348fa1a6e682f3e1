//! Commands to a run in progress, and its replies.

use std::{
    fmt,
    fs::File,
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use strum::VariantNames;

use crate::{
    Assignments, Source,
    records::ByDomain,
    view::{RunStatus, duration},
};

/// The socket in a run's folder that takes commands while a process works on the run.
pub const SOCKET: &str = "control.sock";
/// Maximum bytes of a command.
pub const LONGEST_COMMAND: usize = 4 << 10;

/// Opens a folder and returns a short path to it, which works while the folder is open. A socket's address holds 108
/// bytes, so it must not contain the folder's own path, which may be long.
///
/// # Errors
/// If the folder cannot be opened.
pub fn short_path(folder: &Path) -> io::Result<(File, PathBuf)> {
    let open = File::open(folder)?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    Ok((open, short))
}

/// A command, as JSON: `{"command": "set", "values": {"lr_scheduler.min_lr": 1e-6}}`. `VARIANTS` has all names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, VariantNames)]
#[serde(tag = "command", rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Command {
    /// Return the status of the run.
    Status,
    /// Save a checkpoint after the step in progress.
    Checkpoint,
    /// Evaluate the student after the step in progress, without changing the mixture.
    Evaluate,
    /// Make no further steps until resumed.
    Pause,
    /// Continue training.
    Resume,
    /// Change settings from the next step on.
    Set {
        /// New values.
        values: Assignments,
    },
    /// Finish the step in progress, save, and end, as on SIGTERM.
    Stop,
}

/// The result of a command, as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Reply {
    /// The status of the run.
    Status(Box<RunStatus>),
    /// A checkpoint is on the disk.
    Checkpoint {
        /// Its step.
        step: u64,
        /// Its size.
        bytes: u64,
        /// How long it took to write.
        seconds: f64,
    },
    /// The student was evaluated.
    Evaluate {
        /// The step after which it was evaluated.
        step: u64,
        /// How long it took.
        seconds: f64,
        /// Its perplexity by domain, if finite.
        student_perplexity: ByDomain,
        /// The teacher's; empty if there is no teacher.
        teacher_perplexity: ByDomain,
    },
    /// The run is paused.
    Pause {
        /// The last step before the pause.
        step: u64,
    },
    /// The run continues.
    Resume {
        /// The last step before the pause.
        step: u64,
        /// How long it was paused.
        seconds: f64,
    },
    /// Settings have changed.
    Set {
        /// The first step that they apply to.
        step: u64,
        /// The new values.
        values: Assignments,
    },
    /// The run is about to end.
    Stop,
}

impl fmt::Display for Reply {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => status.fmt(formatter),
            Self::Checkpoint {
                step,
                bytes,
                seconds,
            } => write!(
                formatter,
                "saved step {step}: {bytes} bytes in {}",
                duration(*seconds)
            ),
            Self::Evaluate {
                step,
                student_perplexity,
                teacher_perplexity,
                ..
            } => {
                write!(formatter, "perplexity after step {step}:")?;
                for (domain, student) in student_perplexity {
                    write!(formatter, " {domain} {student:.3}")?;
                    if let Some(teacher) = teacher_perplexity.get(domain) {
                        write!(formatter, " (teacher {teacher:.3})")?;
                    }
                }
                Ok(())
            }
            Self::Pause { step } => write!(formatter, "paused after step {step}"),
            Self::Resume { step, seconds } => {
                write!(
                    formatter,
                    "resumed after step {step}, paused for {}",
                    duration(*seconds)
                )
            }
            Self::Set { step, values } => {
                write!(formatter, "from step {step} on:")?;
                values
                    .iter()
                    .try_for_each(|(key, value)| write!(formatter, " {key} = {value}"))
            }
            Self::Stop => formatter.write_str("finishing the step and saving; then the run ends"),
        }
    }
}

/// Why a command was not carried out, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// The outcome of a command.
pub type Outcome = Result<Reply, Refusal>;

/// The answer that is sent to the client. Without a reply, it is a refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The reply or the refusal as text.
    pub message: String,
    /// The reply, if the command was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<Reply>,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        let (message, reply) = match outcome {
            Ok(reply) => (reply.to_string(), Some(reply)),
            Err(Refusal(reason)) => (reason, None),
        };
        Self { message, reply }
    }
}

/// The outcome of a command, once it is known.
pub type Asked = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// Carries out commands.
pub trait Control: fmt::Debug + Send + Sync {
    /// Carries out a command at the next step boundary.
    fn ask(self: Arc<Self>, command: Command, source: Source) -> Asked;
}
