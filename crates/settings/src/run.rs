//! The run itself: its end, its checkpoints, its guards, its telemetry.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

use crate::{
    Token,
    limits::{LONGEST_SECONDS, MANY},
};

/// The run: its name, its end, its seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Name of the run and of its folder: letters, digits, `.`, `_`, `-`. Needed to train.
    #[schemars(example = "math-7b")]
    pub name: Option<String>,
    /// The folder of all runs.
    #[default = "runs"]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub folder: PathBuf,
    /// Every random choice is drawn from it.
    pub seed: u64,
    /// Stop after this many optimizer steps. One of max_steps, max_intervals and max_tokens is needed to
    /// train; a larger one extends a run, finished or not.
    #[schemars(range(min = 1, max = MANY), extend("x-may-grow" = true, "x-quick" = 4))]
    pub max_steps: Option<u64>,
    /// Stop after this many times mixture.interval steps.
    #[schemars(range(min = 1, max = MANY), extend("x-may-grow" = true))]
    pub max_intervals: Option<u64>,
    /// Stop at the end of the step in which this many tokens have been trained on.
    #[schemars(range(min = 1), extend("x-may-grow" = true, "x-quick" = 4))]
    pub max_tokens: Option<u64>,
    /// Stop at an interval's end where the student's perplexity is at most this many times the teacher's in
    /// every domain.
    #[schemars(range(min = 1), example = 1.05)]
    pub stop_ratio: Option<f64>,
    /// Which student is exported when the run is done: the `last`, or the `best`, which has the smallest mean
    /// ratio to the teacher of all that were measured.
    #[default(ExportedStudent::Last)]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub export: ExportedStudent,
    /// Write samples.jsonl: for each step, which rows of which documents it was trained on.
    pub trace: bool,
    /// Teachers and student compute one at a time, each on all its threads: on the CPU the faster way where
    /// the student is the slower side and both have a thread for each core.
    pub take_turns: bool,
    /// Take only algorithms that give the same bits each time on a GPU, which makes attention's backward
    /// slower. On the CPU every run gives the same bits anyway.
    pub deterministic: bool,
    /// Who chooses `run.take_turns`, `teacher.lanes`, `teacher.threads` and `student.threads` on the CPU:
    /// `given`, or `auto`, a measurement before step 1, whose choice the run keeps.
    #[default(ThreadChoice::Given)]
    pub threads: ThreadChoice,
}

/// Which student a run exports when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportedStudent {
    /// The one after the last step.
    Last,
    /// The one that was nearest to the teacher, by the mean ratio of perplexities.
    Best,
}

/// Who shares the CPU's cores between teacher and student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadChoice {
    /// The settings of teacher and student.
    Given,
    /// A measurement of both.
    Auto,
}

/// The queues between workers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Queues {
    /// Micro-batches that may wait in each queue. Changes speed and memory, never results.
    #[default = 2]
    #[schemars(range(max = 8))]
    pub depth: usize,
}

/// How perplexities are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Measure perplexities so often, in steps (at the next interval's end), where the mixture's policy does
    /// without. They are always measured at the start and at the end.
    #[schemars(range(min = 1, max = MANY))]
    pub every: Option<u64>,
    /// Validation documents in a batch.
    #[default = 8]
    #[schemars(range(min = 1))]
    pub batch_rows: usize,
}

/// When the run is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between two saves.
    #[default = 500]
    #[schemars(range(min = 1), extend("x-live" = true))]
    pub every: u64,
    /// How many of the newest checkpoints stay.
    #[default = 3]
    #[schemars(range(min = 1), extend("x-live" = true))]
    pub keep: usize,
    /// Checkpoints of steps that are multiples of this are never removed.
    #[schemars(range(min = 1))]
    pub keep_every: Option<u64>,
    /// Also keep the checkpoint at which the student was nearest to the teacher, and save one wherever it is
    /// nearer than ever. With mixture.lag = 1 one is saved at each evaluation, because what that comes to is
    /// known later.
    pub keep_best: bool,
}

/// What is done when something goes wrong. An update whose loss or gradient is not finite is never made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// After so many skipped updates in a row the run rewinds to its last checkpoint and skips their data.
    #[default = 10]
    #[schemars(range(min = 1))]
    pub max_skipped: u64,
    /// After so many such restorations the run stops.
    #[default = 3]
    pub max_rollbacks: u64,
    /// What is done at a spike of the loss.
    #[default(Spike::Warn)]
    pub spike: Spike,
    /// A spike is over the mean of the last losses by so many standard deviations.
    #[default = 6.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub spike_sigmas: f64,
    /// How many losses that is; at least spike_from.
    #[default = 128]
    #[schemars(range(min = 2))]
    pub spike_window: usize,
    /// Nothing is a spike before so many losses.
    #[default = 64]
    #[schemars(range(min = 2))]
    pub spike_from: usize,
    /// Seconds that finishing the step and saving may take after a signal; then the process ends as it is,
    /// and the run resumes from the checkpoint before.
    #[default = 120.0]
    #[schemars(range(max = LONGEST_SECONDS), extend("exclusiveMinimum" = 0, "x-may-differ-on-resume" = true))]
    pub grace_seconds: f64,
    /// Seconds that a worker may compute at a stretch before /livez calls it sick and a watchdog is no longer
    /// fed. Waiting is never sick.
    #[default = 900.0]
    #[schemars(range(max = LONGEST_SECONDS), extend("exclusiveMinimum" = 0, "x-may-differ-on-resume" = true))]
    pub compute_limit_seconds: f64,
}

/// What is done at a spike of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Spike {
    /// Nothing.
    Ignore,
    /// An event in events.jsonl.
    Warn,
    /// The update is not made.
    Skip,
    /// The run rewinds to its last checkpoint and skips the step's data.
    RollBack,
}

/// Faults on purpose, for tests; refused unless DDK_ALLOW_FAULTS=1 is in the environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Each entry strikes once: `KIND PLACE NUMBER [CALL]`, such as "panic student 5" or "kill save 8 3" (at
    /// its third system call). docs/running.md lists kinds and places.
    pub plan: Vec<String>,
}

/// The server of the live page, metrics and health.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Whether the live page, /api, /metrics, /livez and /readyz are served.
    #[default = true]
    pub enabled: bool,
    /// Address and port; one that is not a loopback address needs a token.
    #[default = "127.0.0.1:9469"]
    pub address: String,
    /// What everybody who asks has to know, 16 characters or more; best given as DDK__TELEMETRY__TOKEN in the
    /// environment. It is left out of what the program writes.
    #[schemars(extend("x-secret" = true))]
    pub token: Option<Token>,
    /// Stop if the port is taken, instead of continuing without the server.
    pub required: bool,
    /// Also write the metrics to this file every 5 seconds and at the end, for the node exporter's textfile
    /// collector; its name ends in `.prom`.
    pub file: Option<PathBuf>,
}

/// What is said while running.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Seconds between two lines about a step; 0: a line each step.
    #[default = 15.0]
    #[schemars(range(min = 0, max = LONGEST_SECONDS), extend("x-live" = true))]
    pub line_seconds: f64,
}
