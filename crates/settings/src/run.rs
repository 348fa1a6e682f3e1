//! Settings of the run: length, pipeline, evaluation, checkpoints, recovery, telemetry, log.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

use crate::{
    Token,
    limits::{LONGEST_SECONDS, MANY},
};

/// Name, length and seed of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Name of the run and of its folder: letters, digits, `.`, `_`, `-`. Required for training.
    #[schemars(example = "math-7b")]
    pub name: Option<String>,
    /// Folder that contains the folders of all runs.
    #[default = "runs"]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub output_dir: PathBuf,
    /// Seed of all random choices.
    pub seed: u64,
    /// Stop after this many optimizer steps. Training requires max_steps, max_intervals or max_tokens. A larger
    /// value extends a run, even a finished one.
    #[schemars(range(min = 1, max = MANY), extend("x-may-grow" = true, "x-quick" = 4))]
    pub max_steps: Option<u64>,
    /// Stop after this many intervals, each counted as mixture.interval steps.
    #[schemars(range(min = 1, max = MANY), extend("x-may-grow" = true))]
    pub max_intervals: Option<u64>,
    /// Stop after the step at which the total of trained tokens reaches this number.
    #[schemars(range(min = 1), extend("x-may-grow" = true, "x-quick" = 4))]
    pub max_tokens: Option<u64>,
    /// Stop at the end of an interval if the gap of every domain is at most this, in nats per token. The gap is
    /// ln(student's perplexity / teacher's perplexity).
    #[schemars(range(min = 0), example = 0.05)]
    pub target_gap: Option<f64>,
    /// Stop after this many evaluations in a row that do not improve the mean gap of the domains. Evaluations after
    /// step 0 count. A larger value extends a run that stopped so.
    #[schemars(range(min = 1), example = 5, extend("x-may-grow" = true))]
    pub patience: Option<u64>,
    /// `run.patience`: an evaluation improves the mean gap if it is smaller than the smallest so far by more than this,
    /// in nats per token.
    #[default = 0.0]
    #[schemars(range(min = 0))]
    pub min_improvement: f64,
    /// Student to export when the run is done: the `last`, or the `best`, which has the smallest mean gap of all
    /// evaluated students.
    #[default(ExportedStudent::Last)]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub export: ExportedStudent,
    /// Use only deterministic algorithms on GPUs, so that a repeated run gives the same bits. This slows down the
    /// backward pass of attention. On the CPU, runs with the same thread counts always give the same bits.
    pub deterministic: bool,
}

/// The student that a finished run exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportedStudent {
    /// The student after the last step.
    Last,
    /// The evaluated student with the smallest mean gap.
    Best,
}

/// How the teacher and the student share the machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Pipeline {
    /// Maximum number of micro-batches in each queue between workers. Affects speed and memory, never results.
    #[default = 2]
    #[schemars(range(max = 8), extend("x-may-differ-on-resume" = true))]
    pub queue_depth: usize,
    /// Let the teacher's replicas and the student compute one at a time, each with all its threads. On the CPU, this
    /// is faster if the student is slower than the teacher and both have one thread per core.
    pub time_slicing: bool,
    /// How to choose `pipeline.time_slicing`, the number of `teacher.devices`, `teacher.threads` and
    /// `student.threads` on the CPU: `manual` uses the settings, `auto` measures both models before step 1. The run
    /// keeps the choice.
    #[default(ThreadChoice::Manual)]
    pub threads: ThreadChoice,
}

/// How to divide the CPU cores between the teacher and the student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadChoice {
    /// Use the settings of the teacher and the student.
    Manual,
    /// Measure both models.
    Auto,
}

/// How several processes share each step, and how long they wait for each other. `torchrun` starts the processes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// Parts of a step, a power of two. The number of processes must divide it. DDK adds gradients by parts in a fixed
    /// order, so a run gives the same bits on any such number of processes. It is the largest number of processes that
    /// the run can ever use.
    #[default = 1]
    #[schemars(range(min = 1, max = 1024))]
    pub slots: u64,
    /// Seconds that a process waits for another one in an exchange. It then ends, and `torchrun --max-restarts`
    /// restarts all processes. A process that is killed is noticed at once, whatever this limit.
    #[default = 1800.0]
    #[schemars(range(min = 1, max = LONGEST_SECONDS), extend("x-may-differ-on-resume" = true))]
    pub timeout_seconds: f64,
}

/// How DDK measures perplexities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Evaluation {
    /// Steps between evaluations, for mixture policies that do not need evaluations. Each one takes place at the end of
    /// an interval. DDK always evaluates at the start and at the end of a run. Default: no evaluations in between.
    #[schemars(range(min = 1, max = MANY))]
    pub interval: Option<u64>,
    /// Validation documents per batch.
    #[default = 8]
    #[schemars(range(min = 1))]
    pub batch_size: usize,
}

/// When DDK saves checkpoints, and which ones it keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Steps between checkpoints.
    #[default = 500]
    #[schemars(range(min = 1), extend("x-live" = true))]
    pub interval: u64,
    /// Number of newest checkpoints to keep.
    #[default = 3]
    #[schemars(range(min = 1), extend("x-live" = true))]
    pub keep_latest: usize,
    /// Also keep every checkpoint whose step is a multiple of this.
    #[schemars(range(min = 1))]
    pub keep_every: Option<u64>,
    /// Also keep the checkpoint with the smallest mean gap, and save one whenever an evaluation finds a new minimum.
    /// With mixture.lag = 1, DDK saves one at each evaluation, because the result arrives later.
    pub keep_best: bool,
}

/// How the run recovers from failures. DDK always skips an update whose loss or gradient is not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Recovery {
    /// After this many skipped updates in a row, rewind to the last checkpoint and skip their data.
    #[default = 10]
    #[schemars(range(min = 1))]
    pub max_consecutive_skips: u64,
    /// Maximum number of rollbacks, which are rewinds that skip data. If one more is due, the run stops.
    #[default = 3]
    pub max_rollbacks: u64,
    /// What to do if the loss spikes: `ignore` it, `warn` with an event in events.jsonl, `skip` the update, or
    /// `roll-back`: rewind to the last checkpoint and skip the step's data.
    #[default(SpikeAction::Warn)]
    pub spike_action: SpikeAction,
    /// A loss is a spike if it is more than this many standard deviations above the mean of the recent losses.
    #[default = 6.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub spike_threshold: f64,
    /// Number of recent losses in the mean and the standard deviation; at least spike_min_history.
    #[default = 128]
    #[schemars(range(min = 2))]
    pub spike_window: usize,
    /// Number of losses to collect before a loss can be a spike.
    #[default = 64]
    #[schemars(range(min = 2))]
    pub spike_min_history: usize,
    /// Maximum number of seconds to finish the step and save a checkpoint after a stop signal. After that, the process
    /// ends at once. The run then resumes from its last checkpoint.
    #[default = 120.0]
    #[schemars(range(max = LONGEST_SECONDS), extend("exclusiveMinimum" = 0, "x-may-differ-on-resume" = true))]
    pub shutdown_grace_seconds: f64,
    /// Maximum seconds that a worker may compute without a break. After that, /livez reports the worker, and DDK stops
    /// notifying systemd's watchdog. Waiting does not count.
    #[default = 900.0]
    #[schemars(range(max = LONGEST_SECONDS), extend("exclusiveMinimum" = 0, "x-may-differ-on-resume" = true))]
    pub watchdog_seconds: f64,
}

/// What to do if the loss spikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SpikeAction {
    /// Do nothing.
    Ignore,
    /// Write an event to events.jsonl.
    Warn,
    /// Skip the update.
    Skip,
    /// Rewind to the last checkpoint and skip the step's data.
    RollBack,
}

/// Faults that DDK injects for tests. They require DDK_ALLOW_FAULTS=1 in the environment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FaultInjection {
    /// Faults to inject, each once: `KIND PLACE NUMBER [CALL]`, such as "panic student 5" or "kill save 8 3" (at the
    /// third system call of the save). docs/running.md lists kinds and places.
    pub plan: Vec<String>,
}

/// The server of the live page, the metrics and the health checks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// Serve the live page, /api, /metrics, /livez and /readyz.
    #[default = true]
    pub enabled: bool,
    /// Address and port of the server. An address other than loopback requires a token.
    #[default = "127.0.0.1:9469"]
    pub listen: String,
    /// Token that clients must present, 16 characters or more. We recommend the environment variable
    /// DDK__TELEMETRY__TOKEN instead. DDK leaves the token out of everything that it writes.
    #[schemars(extend("x-secret" = true))]
    pub token: Option<Token>,
    /// Stop if the port is taken, instead of running without the server.
    pub required: bool,
    /// Also write the metrics to this file every 5 seconds and at the end, for the node exporter's textfile
    /// collector. The name must end in `.prom`.
    pub metrics_file: Option<PathBuf>,
}

/// Texts that show what the models write.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Samples {
    /// Prompts that the student continues at each evaluation, and the teacher once, always with the most likely token.
    /// The page, the report and texts.jsonl show the texts. They cost time, but change no result. A served teacher
    /// writes none.
    pub prompts: Vec<String>,
    /// Maximum number of tokens after each prompt.
    #[default = 64]
    #[schemars(range(min = 1, max = 4096))]
    pub max_tokens: u64,
}

/// What DDK reports during a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Seconds between log lines about steps; 0 logs every step.
    #[default = 15.0]
    #[schemars(range(min = 0, max = LONGEST_SECONDS), extend("x-live" = true))]
    pub interval_seconds: f64,
    /// Write samples.jsonl, which lists the sequences of each step and the documents in them.
    #[schemars(extend("x-may-differ-on-resume" = false))]
    pub samples: bool,
}
