//! The run itself: its end, its pipeline, its checkpoints, its recovery, its telemetry.

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
    pub output_dir: PathBuf,
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
    /// Stop at the end of an interval if the gap of every domain is at most this, in nats per token. The gap is
    /// ln(student's perplexity / teacher's).
    #[schemars(range(min = 0), example = 0.05)]
    pub target_gap: Option<f64>,
    /// Which student to export when the run is done: the `last`, or the `best`, the one with the smallest mean gap
    /// of all that were evaluated.
    #[default(ExportedStudent::Last)]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub export: ExportedStudent,
    /// Use only algorithms that give the same bits each time on a GPU, which makes the backward pass of attention
    /// slower. On the CPU every run gives the same bits anyway.
    pub deterministic: bool,
}

/// Which student a run exports when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportedStudent {
    /// The one after the last step.
    Last,
    /// The one with the smallest mean gap.
    Best,
}

/// How teacher and student share the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Pipeline {
    /// Micro-batches that may wait in each queue between workers. Changes speed and memory, never results.
    #[default = 2]
    #[schemars(range(max = 8), extend("x-may-differ-on-resume" = true))]
    pub queue_depth: usize,
    /// Let teachers and student compute one at a time, each on all its threads. On the CPU this is faster if the
    /// student is the slower side and both have a thread for each core.
    pub time_slicing: bool,
    /// Who chooses `pipeline.time_slicing`, the number of `teacher.devices`, `teacher.threads` and
    /// `student.threads` on the CPU: `manual`, the settings; or `auto`, a measurement before step 1. The run keeps
    /// the choice.
    #[default(ThreadChoice::Manual)]
    pub threads: ThreadChoice,
}

/// Who shares the CPU's cores between teacher and student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadChoice {
    /// The settings of teacher and student.
    Manual,
    /// A measurement of both.
    Auto,
}

/// How perplexities are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Steps between two evaluations (at the end of an interval) if the mixture's policy does not need them. DDK
    /// always evaluates at the start and at the end.
    #[schemars(range(min = 1, max = MANY))]
    pub interval: Option<u64>,
    /// Validation documents per batch.
    #[default = 8]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
}

/// When the run is saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between two checkpoints.
    #[default = 500]
    #[schemars(range(min = 1), extend("x-live" = true))]
    pub interval: u64,
    /// How many of the newest checkpoints to keep.
    #[default = 3]
    #[schemars(range(min = 1), extend("x-live" = true))]
    pub keep_latest: usize,
    /// Keep every checkpoint whose step is a multiple of this.
    #[schemars(range(min = 1))]
    pub keep_every: Option<u64>,
    /// Also keep the checkpoint with the smallest mean gap, and save one whenever the mean gap is smaller than ever.
    /// With mixture.lag = 1, DDK saves one at each evaluation, because the result is known later.
    pub keep_best: bool,
}

/// What to do if something goes wrong. DDK never makes an update whose loss or gradient is not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Recovery {
    /// After this many skipped updates in a row, the run rewinds to its last checkpoint and skips their data.
    #[default = 10]
    #[schemars(range(min = 1))]
    pub max_consecutive_skips: u64,
    /// After this many such rollbacks, the run stops.
    #[default = 3]
    pub max_rollbacks: u64,
    /// What to do if the loss spikes.
    #[default(SpikeAction::Warn)]
    pub spike_action: SpikeAction,
    /// A spike is a loss this many standard deviations over the mean of the last losses.
    #[default = 6.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub spike_threshold: f64,
    /// Number of last losses in the mean; at least spike_min_history.
    #[default = 128]
    #[schemars(range(min = 2))]
    pub spike_window: usize,
    /// Number of losses before the first one that can be a spike.
    #[default = 64]
    #[schemars(range(min = 2))]
    pub spike_min_history: usize,
    /// Seconds that the run may take to finish the step and save after a signal. Then the process ends at once, and
    /// the run resumes from the checkpoint before.
    #[default = 120.0]
    #[schemars(range(max = LONGEST_SECONDS), extend("exclusiveMinimum" = 0, "x-may-differ-on-resume" = true))]
    pub shutdown_grace_seconds: f64,
    /// Seconds that a worker may compute without a pause before /livez reports it and systemd's watchdog is no longer
    /// notified. Waiting does not count.
    #[default = 900.0]
    #[schemars(range(max = LONGEST_SECONDS), extend("exclusiveMinimum" = 0, "x-may-differ-on-resume" = true))]
    pub watchdog_seconds: f64,
}

/// What to do if the loss spikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpikeAction {
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
pub struct FaultInjection {
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
    pub listen: String,
    /// What everybody who asks has to know, 16 characters or more; best given as DDK__TELEMETRY__TOKEN in the
    /// environment. It is left out of what the program writes.
    #[schemars(extend("x-secret" = true))]
    pub token: Option<Token>,
    /// Stop if the port is taken, instead of continuing without the server.
    pub required: bool,
    /// Also write the metrics to this file every 5 seconds and at the end, for the node exporter's textfile
    /// collector; its name ends in `.prom`.
    pub metrics_file: Option<PathBuf>,
}

/// What DDK reports while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Seconds between two lines about a step; 0: one line per step.
    #[default = 15.0]
    #[schemars(range(min = 0, max = LONGEST_SECONDS), extend("x-live" = true))]
    pub interval_seconds: f64,
    /// Write samples.jsonl: for each step, which sequences of which documents it was trained on.
    #[schemars(extend("x-may-differ-on-resume" = false))]
    pub samples: bool,
}
