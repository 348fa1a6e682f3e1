//! What the API answers: the types behind `docs/api.md`. Numbers that are not finite are `null`.

use std::collections::BTreeMap;

use ddk_run::records::{EventKind, EventLine, StopReason};
use serde::{Deserialize, Serialize};

pub use crate::progress::Progress;

/// `/api/run`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunReply {
    /// How it stands now.
    pub status: Status,
    /// Its steps so far.
    pub steps: Steps,
    /// What each worker did in the last minutes; only from the process that trains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<Lanes>,
}

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its name: its folder's.
    pub name: String,
    /// What it does.
    pub state: State,
    /// Why it is done, where it is: `max_steps`, `max_intervals`, `max_tokens`, `stop_ratio` or `max_passes`.
    pub stop_reason: Option<StopReason>,
    /// The last optimizer step.
    pub step: u64,
    /// The step at which it ends, where that is known.
    pub step_limit: Option<u64>,
    /// The interval that its mixture was set for last.
    pub interval: Option<u64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Tokens at which it ends, where it has such a limit.
    pub token_limit: Option<u64>,
    /// Since its first start, pauses included; of a finished run, what it took.
    pub seconds: Option<f64>,
    /// An estimate of what is left.
    pub seconds_left: Option<f64>,
    /// Over the last 50 steps.
    pub tokens_per_second: Option<f64>,
    /// Means over the last 50 steps.
    pub losses: Losses,
    /// Mean seconds of the last 50 steps by phase.
    pub phases: BTreeMap<String, f64>,
    /// Mean over the domains of student's over teacher's perplexity, at the last evaluation.
    pub ratio: Option<f64>,
    /// The same before the first step.
    pub ratio_at_start: Option<f64>,
    /// The step of the last evaluation.
    pub evaluated_at_step: Option<u64>,
    /// By domain, in the order of their names.
    pub domains: Vec<Domain>,
    /// How many events there were of each kind.
    pub events: BTreeMap<EventKind, u64>,
    /// The last checkpoint.
    pub saved: Option<Saved>,
    /// Only from the process that trains.
    pub workers: Vec<WorkerStatus>,
    /// Only from the process that trains.
    pub queues: Vec<QueueStatus>,
    /// What of its files could not be read.
    pub problems: Vec<String>,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its process builds models and workers.
    Starting,
    /// It trains.
    Running,
    /// Its process goes back to the last checkpoint.
    Recovering,
    /// The last step is made, or it was told to stop: the student is exported, the report written.
    Ending,
    /// It is done and has a summary.
    Finished,
    /// It is not done, and no process works on it; its last process was told to stop, or was killed.
    Stopped,
    /// It is not done, and its last process ended with an error.
    Failed,
}

impl State {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Recovering => "recovering",
            Self::Ending => "ending",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }

    /// Whether no process works on it.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped | Self::Failed)
    }
}

/// Means over the last steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// `ce + gamma * kl`, nats a prediction.
    pub loss: Option<f64>,
    /// Cross-entropy.
    pub ce: Option<f64>,
    /// Divergence from the teacher.
    pub kl: Option<f64>,
    /// Global gradient norm before clipping.
    pub gradient_norm: Option<f64>,
    /// The last step's.
    pub learning_rate: Option<f64>,
}

/// How it stands with a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// At the last evaluation.
    pub student_perplexity: Option<f64>,
    /// The teacher's.
    pub teacher_perplexity: Option<f64>,
    /// Student's over teacher's.
    pub ratio: Option<f64>,
    /// The same before the first step.
    pub ratio_at_start: Option<f64>,
    /// Its weight in the mixture.
    pub weight: Option<f64>,
    /// Its share of rows after limits.
    pub target: Option<f64>,
    /// Its share of the tokens of all whole intervals.
    pub token_share: Option<f64>,
    /// Passes over it at the last interval's end.
    pub passes: Option<f64>,
}

/// A checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Of which step.
    pub step: u64,
    /// When, seconds since 1970.
    pub time: f64,
}

/// A worker, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// `student`, `teacher-0`, `loader-NAME`, …
    pub name: String,
    /// `busy`, `waiting_for_input`, `waiting_for_output` or `stopped`.
    pub state: String,
    /// For how long.
    pub state_seconds: f64,
    /// Seconds that this process's worker has computed.
    pub busy_seconds: f64,
    /// And waited for input.
    pub starved_seconds: f64,
    /// And waited to hand on its output.
    pub blocked_seconds: f64,
    /// Times that it was built again.
    pub restarts: u64,
    /// How far it is with what takes long: an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// A queue, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// From whom to whom.
    pub name: String,
    /// What waits in it.
    pub length: usize,
    /// What may.
    pub capacity: usize,
}

/// Steps as columns; each point is the mean of up to `stride` steps, so that there are at most 1,024.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// The number of the first point given here, from 0: not 0 only in `/api/stream`, where later points
    /// follow earlier ones.
    pub from: usize,
    /// Steps of a whole point.
    pub stride: u64,
    /// The last step of each point.
    pub step: Vec<u64>,
    /// See [`Losses`].
    pub loss: Vec<Option<f64>>,
    /// See [`Losses`].
    pub ce: Vec<Option<f64>>,
    /// See [`Losses`].
    pub kl: Vec<Option<f64>>,
    /// See [`Losses`].
    pub gradient_norm: Vec<Option<f64>>,
    /// See [`Losses`].
    pub learning_rate: Vec<Option<f64>>,
    /// Tokens over the seconds of the step's phases.
    pub tokens_per_second: Vec<Option<f64>>,
}

/// `/api/mixture`: columns, an entry an interval; of more than 1,024 intervals every second, fourth, … is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    /// The intervals.
    pub interval: Vec<u64>,
    /// The last step before each applies.
    pub step: Vec<u64>,
    /// The policy that set the last.
    pub policy: Option<String>,
    /// Why an update was refused, by interval.
    pub refused: BTreeMap<u64, String>,
    /// By domain.
    pub domains: BTreeMap<String, MixtureDomain>,
    /// The evaluation after the last step of a finished run.
    pub after: Option<After>,
}

/// A domain's columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MixtureDomain {
    /// What the policy decided.
    pub weight: Vec<Option<f64>>,
    /// After limits.
    pub target: Vec<Option<f64>>,
    /// The student's perplexity.
    pub student_perplexity: Vec<Option<f64>>,
    /// The teacher's perplexity.
    pub teacher_perplexity: Vec<Option<f64>>,
    /// Student's over teacher's.
    pub ratio: Vec<Option<f64>>,
    /// Tokens that the interval drew, once it has ended.
    pub tokens: Vec<Option<u64>>,
}

/// The last evaluation of a finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct After {
    /// The last step.
    pub step: u64,
    /// By domain.
    pub student_perplexity: BTreeMap<String, f64>,
    /// Student's over teacher's.
    pub ratio: BTreeMap<String, f64>,
}

/// `/api/events`: the last 50 saves and the last 200 of all other events, in the order of time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// Lines of `events.jsonl`.
    pub events: Vec<EventLine>,
}

/// What each worker did, second by second.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lanes {
    /// The number of the first sample given here, since the process began.
    pub from: u64,
    /// How long a sample is.
    pub seconds: f64,
    /// The workers' names.
    pub workers: Vec<String>,
    /// A sample: for each worker, per cent busy, waiting for input, waiting for output; a worker that came
    /// later is not in the earlier samples.
    pub samples: Vec<Vec<[u8; 3]>>,
}

/// An entry of `/api/runs` (`ddk serve`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEntry {
    /// Its folder below the one that is served; to be given as `?name=` to the other addresses.
    pub name: String,
    /// How it stands.
    pub status: Status,
}

/// A number, where it is finite.
pub(crate) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}
