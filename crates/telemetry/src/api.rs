//! What the API answers beside the parts of a [`ddk_run::RunView`]: the types behind `docs/api.md`.

use ddk_run::{RunView, records::EventLine, view::RunStatus};
use serde::{Deserialize, Serialize};

pub use crate::progress::Progress;

/// `/api/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// How the run stands.
    #[serde(flatten)]
    pub run: RunStatus,
    /// Only from the process that trains.
    pub workers: Vec<WorkerStatus>,
    /// Only from the process that trains.
    pub queues: Vec<QueueStatus>,
}

impl Status {
    /// As the folder alone tells it.
    pub fn of_folder(view: &RunView) -> Self {
        Self {
            run: view.status(None),
            workers: Vec::new(),
            queues: Vec::new(),
        }
    }
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
    pub input_wait_seconds: f64,
    /// And waited to hand on its output.
    pub output_wait_seconds: f64,
    /// How often it was restarted.
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

/// An entry of `/api/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// A line of `events.jsonl`.
    #[serde(flatten)]
    pub line: EventLine,
    /// Whether it is not routine.
    pub is_incident: bool,
}

impl Event {
    /// The last events of a run.
    pub fn all(view: &RunView) -> Vec<Self> {
        let event = |line: EventLine| Self {
            is_incident: line.kind.is_incident(),
            line,
        };
        view.events().into_iter().map(event).collect()
    }
}

/// What each worker did, second by second: `/api/workers`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lanes {
    /// Number of the first sample given here, counted from the start of the process.
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
