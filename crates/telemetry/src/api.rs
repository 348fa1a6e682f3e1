//! The types of the API's answers (`docs/api.md`), except those of a [`ddk_run::RunView`].

use ddk_run::{RunView, records::EventLine, view::RunStatus};
use serde::{Deserialize, Serialize};

use crate::{Board, progress::Progress};

/// `/api/status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The status of the run.
    #[serde(flatten)]
    pub run: RunStatus,
    /// Only from the process that trains.
    pub workers: Vec<WorkerStatus>,
    /// Only from the process that trains.
    pub queues: Vec<QueueStatus>,
    /// Only from a process that trains together with others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankStatus>,
}

impl Status {
    /// The status according to the run's folder and, if this process trains it, its board.
    pub fn new(view: &RunView, board: Option<&Board>) -> Self {
        let mut run = view.status(board.map(Board::state));
        if let Some(board) = board {
            board.complete(&mut run);
        }
        Self {
            run,
            workers: board.map_or_else(Vec::new, Board::worker_statuses),
            queues: board.map_or_else(Vec::new, Board::queue_statuses),
            ranks: board.map_or_else(Vec::new, Board::ranks),
        }
    }
}

/// The current status of a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// `student`, `teacher-0`, `loader-NAME`, …
    pub name: String,
    /// `busy`, `waiting_for_input`, `waiting_for_output` or `stopped`.
    pub state: String,
    /// Seconds that it has been in this state.
    pub state_seconds: f64,
    /// Seconds that it has computed in this process.
    pub busy_seconds: f64,
    /// Seconds that it has waited for input.
    pub input_wait_seconds: f64,
    /// Seconds that it has waited to pass on its output.
    pub output_wait_seconds: f64,
    /// How often it was restarted.
    pub restarts: u64,
    /// The progress of a long phase, such as an evaluation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// The current status of a queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its sender and its receiver.
    pub name: String,
    /// Number of items that wait in it.
    pub length: usize,
    /// Maximum number of items.
    pub capacity: usize,
}

/// How a rank, one of the processes that train together, spent its time in the last step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// Its number, from 0.
    pub rank: usize,
    /// Seconds that its student computed.
    pub busy: f64,
    /// Seconds that its student waited for the teacher or for data.
    pub waiting: f64,
    /// Seconds of the exchange between ranks at the end of the step before. The rank that the others wait for has the
    /// fewest.
    pub exchange: f64,
}

/// An entry of `/api/events`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// A line of `events.jsonl`.
    #[serde(flatten)]
    pub line: EventLine,
    /// Whether it is an incident.
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
    /// Length of a sample in seconds.
    pub seconds: f64,
    /// The workers' names.
    pub workers: Vec<String>,
    /// One entry per sample: for each worker, the percentages of time busy, waiting for input, and waiting for output.
    /// Earlier samples do not contain workers that started later.
    pub samples: Vec<Vec<[u8; 3]>>,
}

/// An entry of `/api/files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name. `/api/file/NAME` has its contents.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// An entry of `/api/runs` (`ddk serve`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunEntry {
    /// Its folder below the served folder. Pass it as `?name=` to the other addresses.
    pub name: String,
    /// Its status.
    pub status: Status,
}
