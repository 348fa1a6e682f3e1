//! What can be written in a configuration. The comments are the user's documentation.

mod choices;

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

pub use self::choices::{
    Dtype, ExportedStudent, FileFormat, FirstInterval, MixturePolicy, ObjectiveName, Packing,
    Spike, ThreadChoice, ValidationBy, WhenStale,
};
use crate::{Method, Token};

/// A configuration of DDK. Paths are relative to the folder in which `ddk` is started.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// What `mixture.policy` and `objective.name` are where they are not written, by the names of the paper's
    /// rows: `cpt` (natural, ce), `cpt-doremi` (doremi, ce), `kd` (natural, forward_kl), `ted` (natural,
    /// ted), `minillm` (natural, reverse_kl), `ddk` (ddk, forward_kl), `ddk-no-smoothing`, `ddk-equal`
    /// (equal, forward_kl). Must come before the first table of a file.
    pub method: Option<Method>,
    /// The run: its name, its end, its seed.
    pub run: Option<RunOptions>,
    /// How text becomes rows of tokens.
    pub corpus: Option<CorpusOptions>,
    /// The domains, a table each: `[domains.math]`.
    pub domains: Option<BTreeMap<String, DomainOptions>>,
    /// The frozen teacher.
    pub teacher: Option<TeacherOptions>,
    /// The student and how it learns.
    pub student: Option<StudentOptions>,
    /// The optimizer step's batch.
    pub batch: Option<BatchOptions>,
    /// How the mixture of domains moves.
    pub mixture: Option<MixtureOptions>,
    /// What the student minimises.
    pub objective: Option<ObjectiveOptions>,
    /// The queues between workers.
    pub queues: Option<QueueOptions>,
    /// How perplexities are measured.
    pub evaluation: Option<EvaluationOptions>,
    /// When the run is saved.
    pub checkpoint: Option<CheckpointOptions>,
    /// What is done when something goes wrong.
    pub guard: Option<GuardOptions>,
    /// Faults on purpose, for tests; refused unless DDK_ALLOW_FAULTS=1 is in the environment.
    pub faults: Option<FaultOptions>,
    /// The server of the live page, metrics and health.
    pub telemetry: Option<TelemetryOptions>,
    /// What is said while running.
    pub log: Option<LogOptions>,
    /// Models that `ddk pretrain` makes, a table each: `[pretrain.teacher]`.
    pub pretrain: Option<BTreeMap<String, PretrainOptions>>,
}

/// The run: its name, its end, its seed.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunOptions {
    /// Name of the run and of its folder: letters, digits, `.`, `_`, `-`. Needed to train.
    pub name: Option<String>,
    /// The folder of all runs.
    pub folder: Option<PathBuf>,
    /// Every random choice is drawn from it.
    pub seed: Option<u64>,
    /// Stop after this many optimizer steps. One of max_steps, max_intervals and max_tokens is needed to
    /// train; a larger one extends a run, finished or not.
    pub max_steps: Option<u64>,
    /// Stop after this many times mixture.interval steps.
    pub max_intervals: Option<u64>,
    /// Stop at the end of the step in which this many tokens have been trained on.
    pub max_tokens: Option<u64>,
    /// Stop at an interval's end where the student's perplexity is at most this many times the teacher's in
    /// every domain.
    pub stop_ratio: Option<f64>,
    /// Which student is exported when the run is done: the `last`, or the `best`, which has the smallest mean
    /// ratio to the teacher of all that were measured.
    pub export: Option<ExportedStudent>,
    /// Write samples.jsonl: for each step, which rows of which documents it was trained on.
    pub trace: Option<bool>,
    /// Teachers and student compute one at a time, each on all its threads: on the CPU the faster way where
    /// the student is the slower side and both have a thread for each core.
    pub take_turns: Option<bool>,
    /// Take only algorithms that give the same bits each time on a GPU, which makes attention's backward
    /// slower. On the CPU every run gives the same bits anyway.
    pub deterministic: Option<bool>,
    /// Who chooses `run.take_turns`, `teacher.lanes`, `teacher.threads` and `student.threads` on the CPU:
    /// `given`, or `auto`, a measurement before step 1, whose choice the run keeps.
    pub threads: Option<ThreadChoice>,
}

/// How text becomes rows of tokens.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CorpusOptions {
    /// Where prepared domains are kept.
    pub folder: Option<PathBuf>,
    /// Folder of the tokenizer; the student's model folder where absent.
    pub tokenizer: Option<PathBuf>,
    /// The token that ends a document; where absent, the end-of-text token that the tokenizer's folder names.
    pub end_token: Option<String>,
    /// Chooses the documents where `max_bytes` or `max_documents` leaves some out; run.seed where absent.
    pub seed: Option<u64>,
    /// Tokens of a row; one prediction fewer.
    pub sequence_length: Option<usize>,
    /// How documents become rows: joined and cut (`concat`), the same but seeing nothing of each other
    /// (`document`), or whole ones put together with little padding (`best_fit`).
    pub packing: Option<Packing>,
    /// What to do where the prepared corpus is not what the sources, the tokenizer and the settings would
    /// give: `prepare` it again, `refuse` to start, or `use` it as it is.
    pub when_stale: Option<WhenStale>,
    /// How documents are set aside for validation: a `share` of them, or a `count`, by a hash of their content.
    pub validation_by: Option<ValidationBy>,
    /// Share of the documents set aside for validation.
    pub validation_share: Option<f64>,
    /// Validation documents of a domain at the most, each cut at sequence_length; what a share has over it is
    /// used for nothing.
    pub validation_documents: Option<usize>,
    /// Share of records, and of the bytes in files that cannot be read to their end, that may be lost before
    /// it is an error.
    pub max_bad_share: Option<f64>,
}

/// A domain's text.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DomainOptions {
    /// Files, folders or globs. Each line of a `.jsonl` file and each row of a `.parquet` file is a record; a
    /// file with an extension of text or source code is one document. All but Parquet may end in `.gz` or
    /// `.zst`. Other files are refused. Needed.
    pub files: Option<Vec<String>>,
    /// The format of all files of the domain, whatever their extensions are: `jsonl`, `parquet`, or `text`
    /// (each file is one document). Default: each file's extension decides.
    pub format: Option<FileFormat>,
    /// Files of validation documents; where there are none, documents are set aside as `[corpus]` says.
    pub validation_files: Option<Vec<String>>,
    /// The field of a record that holds its text; `a.b` goes into an object. Default: "text".
    pub text_field: Option<String>,
    /// A text made of several fields, instead of text_field: "{question}\n{answer}".
    pub text: Option<String>,
    /// What comes before the text and, with objective.mask_prompt, is not learnt: "{question}\n".
    pub prompt: Option<String>,
    /// Take only the records that name the domain in this field; `a.b` goes into an object (RedPajama:
    /// "meta.redpajama_set_name").
    pub domain_field: Option<String>,
    /// What that field has to say. Default: the domain's name.
    pub domain_value: Option<String>,
    /// Bytes of text to train on at the most.
    pub max_bytes: Option<u64>,
    /// Documents to train on at the most.
    pub max_documents: Option<u64>,
    /// Tokens to train on at the most, the first ones in the order of the files.
    pub max_tokens: Option<u64>,
    /// Shorter documents, in bytes, are left out. Default: 1.
    pub min_document_bytes: Option<u64>,
    /// Longer documents, in bytes, are quarantined. Default: 67108864.
    pub max_document_bytes: Option<u64>,
}

/// The frozen teacher.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TeacherOptions {
    /// Its folder, in the Hugging Face format. Needed to train.
    pub model: Option<PathBuf>,
    /// One entry per replica of the teacher: `["cpu"]`, or GPUs such as `["cuda:0", "cuda:1"]`.
    /// `"cuda:0+cuda:1"` spreads the layers of one replica over both GPUs, in order.
    pub devices: Option<Vec<String>>,
    /// Dtype of its weights and of its products: `fp32`, or `bf16` (GPUs).
    pub dtype: Option<Dtype>,
    /// libtorch's threads of each lane on the CPU.
    pub threads: Option<usize>,
    /// Teachers side by side; micro-batch i goes to lane i modulo lanes.
    pub lanes: Option<usize>,
}

/// The student and how it learns.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StudentOptions {
    /// Folder of the model that it starts as, in the Hugging Face format. Needed to train.
    pub model: Option<PathBuf>,
    /// `cpu`, or `cuda:0`, `cuda:1`, …
    pub device: Option<String>,
    /// Dtype of its products: `fp32`, or `bf16` (GPUs). Weights, gradients and moments are always fp32.
    pub dtype: Option<Dtype>,
    /// Compute the activations inside a layer again in the backward instead of keeping them: the same result,
    /// less memory, one more forward.
    pub recompute: Option<bool>,
    /// libtorch's threads of its lane on the CPU.
    pub threads: Option<usize>,
    /// The highest learning rate.
    pub lr: Option<f64>,
    /// The learning rate at the schedule's end; a cosine leads to it.
    pub lr_end: Option<f64>,
    /// Steps of the linear warm-up from 0.
    pub warmup_steps: Option<u64>,
    /// Steps of the schedule, which ends at lr_end; steps after it keep that rate, and an interval ends with
    /// it. As many as the run has when it is first started where absent, however many it is given later.
    pub schedule_steps: Option<u64>,
    /// AdamW's decoupled weight decay; matrices only.
    pub weight_decay: Option<f64>,
    /// AdamW's decay of the first moment.
    pub beta1: Option<f64>,
    /// AdamW's decay of the second moment.
    pub beta2: Option<f64>,
    /// AdamW's epsilon.
    pub epsilon: Option<f64>,
    /// Gradients are scaled down to this global norm.
    pub clip_norm: Option<f64>,
}

/// The optimizer step's batch.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchOptions {
    /// Rows of an optimizer step.
    pub rows: Option<u64>,
    /// Rows of a micro-batch: what teacher and student take at a time. Divides rows.
    pub micro_rows: Option<u64>,
}

/// How the mixture of domains moves.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixtureOptions {
    /// How it moves: `ddk`, `ddk-no-smoothing`, `sheared` and `odm` follow the models; `equal`, `natural` and
    /// `static` stay as they are; `doremi` finds a fixed mixture in two runs before this one; `doremi-proxy`
    /// is the second of these alone.
    pub policy: Option<MixturePolicy>,
    /// ddk: weight of the discrepancy against the uniform floor, 0 to 1 (alpha of Eq. 2).
    pub alpha: Option<f64>,
    /// Steps between two updates (K), and the unit of run.max_intervals; odm and doremi-proxy move after
    /// every step whatever this is.
    pub interval: Option<u64>,
    /// Intervals between an evaluation and the mixture that follows from it, 0 or 1. 0 (the paper): the
    /// pipeline waits at each interval's end for the evaluation. 1: teacher lane 0 evaluates a copy of the
    /// student on the student's device while training continues.
    pub lag: Option<u64>,
    /// What the first interval of a mixture that moves draws by: the corpus' own proportions, equal weights,
    /// or the discrepancy of Eq. 1. (odm begins with equal weights, as its formula says.)
    pub first: Option<FirstInterval>,
    /// Passes over a domain at the most; its freed share goes to the others.
    pub max_passes: Option<f64>,
    /// static: the share of each domain; those left out get nothing. They need not sum to 1.
    pub shares: Option<BTreeMap<String, f64>>,
    /// sheared: the loss of each domain, in nats, that the student's is held against; the teacher's for those left out.
    pub reference_loss: Option<BTreeMap<String, f64>>,
    /// odm: how much of a domain's estimated reward stays at an update, 0 or more and under 1.
    pub odm_smoothing: Option<f64>,
    /// doremi: folder of the model that reference and proxy start as; the student's where absent.
    pub doremi_model: Option<PathBuf>,
    /// doremi: steps of the reference and of the proxy; as many as the run has where absent.
    pub doremi_steps: Option<u64>,
    /// doremi and doremi-proxy: step size of the weights' update.
    pub doremi_eta: Option<f64>,
    /// doremi and doremi-proxy: how much of the weights is uniform after each update, 0 to 1 (c).
    pub doremi_smoothing: Option<f64>,
}

/// What the student minimises: CE + gamma D, where D is a divergence from the teacher, and with `ted` a
/// distance between layers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveOptions {
    /// The divergence: `ce` (none), `forward_kl`, `reverse_kl`, `jsd`, `skew_kl`, `skew_reverse_kl`, `tvd`,
    /// or `ted` (forward_kl and layers; its first stage alone is `ted_filters`). See docs/methods.md.
    pub name: Option<ObjectiveName>,
    /// Weight of the divergence; 0 leaves it out.
    pub gamma: Option<f64>,
    /// Temperature of both softmaxes in the divergence.
    pub temperature: Option<f64>,
    /// Multiply the divergence by the temperature's square, in value and gradient.
    pub temperature_squared: Option<bool>,
    /// Weight of the teacher in the mixture that `jsd` compares both models with.
    pub beta: Option<f64>,
    /// Share of the first distribution in the mixture that `skew_kl` and `skew_reverse_kl` compare it with.
    pub skew: Option<f64>,
    /// Leave the prompts of the domains that have some out of every term of the loss, and of perplexities.
    pub mask_prompt: Option<bool>,
    /// Positions whose logits are formed at a time; chosen by vocabulary and device where absent.
    pub chunk: Option<i64>,
    /// `ted`: weight of the distance between layers.
    pub ted_weight: Option<f64>,
    /// `ted`: steps of the first stage, in which the filters learn the task and both models are frozen.
    pub ted_steps: Option<u64>,
    /// `ted`: the highest learning rate of the first stage; a warm-up of a twentieth of the steps leads to
    /// it, a cosine to a tenth of it.
    pub ted_lr: Option<f64>,
    /// `ted`: pairs of layers, counted from 1: [[student's, teacher's], …]. Four of them, evenly spread, the
    /// last one with the last one, where absent.
    pub ted_layers: Option<Vec<[u64; 2]>>,
}

/// The queues between workers.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueOptions {
    /// Micro-batches that may wait in each queue, 0 to 8. Changes speed and memory, never results.
    pub depth: Option<usize>,
}

/// How perplexities are measured.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationOptions {
    /// Measure perplexities so often, in steps (at the next interval's end), where the mixture's policy does
    /// without. They are always measured at the start and at the end.
    pub every: Option<u64>,
    /// Validation documents in a batch.
    pub batch_rows: Option<usize>,
}

/// When the run is saved.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointOptions {
    /// Steps between two saves.
    pub every: Option<u64>,
    /// How many of the newest checkpoints stay.
    pub keep: Option<usize>,
    /// Checkpoints of steps that are multiples of this stay for ever.
    pub keep_every: Option<u64>,
    /// Also keep the checkpoint at which the student was nearest to the teacher, and save one wherever it is
    /// nearer than ever. With mixture.lag = 1 one is saved at each evaluation, because what that comes to is
    /// known later.
    pub keep_best: Option<bool>,
}

/// What is done when something goes wrong. An update whose loss or gradient is not finite is never made.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GuardOptions {
    /// After so many skipped updates in a row the last checkpoint is restored and their data passed over.
    pub max_skipped: Option<u64>,
    /// After so many such restorations the run stops.
    pub max_rollbacks: Option<u64>,
    /// What is done at a spike of the loss.
    pub spike: Option<Spike>,
    /// A spike is over the mean of the last losses by so many standard deviations.
    pub spike_sigmas: Option<f64>,
    /// How many losses that is; at least spike_from.
    pub spike_window: Option<usize>,
    /// Nothing is a spike before so many losses.
    pub spike_from: Option<usize>,
    /// Seconds that finishing the step and saving may take after a signal; then the process ends as it is,
    /// and the run goes on from the checkpoint before.
    pub grace_seconds: Option<f64>,
    /// Seconds that a worker may compute at a stretch before /livez calls it sick and a watchdog is no longer
    /// fed. Waiting is never sick.
    pub compute_limit_seconds: Option<f64>,
}

/// Faults on purpose.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FaultOptions {
    /// Each entry strikes once: KIND PLACE NUMBER [CALL], such as "panic student 5" or "kill save 8 3" (at
    /// its third system call). docs/running.md lists kinds and places.
    pub plan: Option<Vec<String>>,
}

/// The server of the live page, metrics and health.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TelemetryOptions {
    /// Whether the live page, /api, /metrics, /livez and /readyz are served.
    pub enabled: Option<bool>,
    /// Address and port; one that is not a loopback address needs a token.
    pub address: Option<String>,
    /// What everybody who asks has to know, 16 characters or more; best given as DDK__TELEMETRY__TOKEN in the
    /// environment. It is left out of what the program writes.
    pub token: Option<Token>,
    /// Stop where the port is taken, instead of going on without the server.
    pub required: Option<bool>,
    /// Also write the metrics to this file every 5 seconds and at the end, for the node exporter's textfile
    /// collector; its name ends in `.prom`.
    pub file: Option<PathBuf>,
}

/// What is said while running.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogOptions {
    /// Seconds between two lines about a step; 0: a line each step.
    pub line_seconds: Option<f64>,
}

/// A model that `ddk pretrain` makes, with cross-entropy alone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PretrainOptions {
    /// Folder to write the model to. Needed.
    pub out: Option<PathBuf>,
    /// Folder of a model to start from, instead of a new one of this architecture.
    pub init: Option<PathBuf>,
    /// The shape of a new model.
    pub architecture: Option<ShapeOptions>,
    /// Optimizer steps. Needed.
    pub steps: Option<u64>,
    /// Rows of an optimizer step. Default: 16.
    pub rows: Option<u64>,
    /// Rows of a micro-batch; divides rows. Default: 8.
    pub micro_rows: Option<u64>,
    /// The highest learning rate. Default: 1e-3.
    pub lr: Option<f64>,
    /// The learning rate of the last step. Default: a tenth of lr.
    pub lr_end: Option<f64>,
    /// Steps of the warm-up. Default: a twentieth of the steps.
    pub warmup_steps: Option<u64>,
    /// AdamW's decoupled weight decay. Default: 0.1.
    pub weight_decay: Option<f64>,
    /// `cpu`, or `cuda:0`, … Default: "cpu".
    pub device: Option<String>,
    /// libtorch's threads on the CPU. Default: all cores.
    pub threads: Option<usize>,
    /// Share of each domain; those left out get nothing. The corpus' own proportions where the table is absent.
    pub shares: Option<BTreeMap<String, f64>>,
    /// Seed of the new weights and of the data's order. Default: run.seed.
    pub seed: Option<u64>,
}

/// The shape of a new Llama model.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ShapeOptions {
    /// Width of the hidden states. Needed.
    pub hidden_size: Option<i64>,
    /// Width of the MLP. Needed.
    pub intermediate_size: Option<i64>,
    /// Layers. Needed.
    pub layers: Option<i64>,
    /// Heads of the queries. Needed.
    pub heads: Option<i64>,
    /// Heads of keys and values. Default: as many as heads.
    pub kv_heads: Option<i64>,
    /// Whether the output matrix is the embedding. Default: false.
    pub tie: Option<bool>,
    /// Base of the rotary embedding. Default: 10000.
    pub rope_theta: Option<f64>,
}
