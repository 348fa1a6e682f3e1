//! Settings of the models: teacher, student, optimizer, objective, pretraining.

use std::{collections::BTreeMap, path::PathBuf};

use ddk_kernel::Divergence;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

use crate::limits::{LARGE, LONGEST_SECONDS, MANY};

/// Dtype of a model's matrix products. Softmaxes and losses always use fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32-bit floating point.
    Fp32,
    /// bfloat16.
    Bf16,
}

/// The frozen teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Teacher {
    /// The teacher: a folder in Hugging Face format, or a name on the Hugging Face Hub such as `Qwen/Qwen2.5-1.5B` or
    /// `Qwen/Qwen2.5-1.5B@REVISION` (docs/hub.md). Required for training.
    pub model: Option<PathBuf>,
    /// One entry per replica of the teacher: `["cpu"]`, or GPUs such as `["cuda:0", "cuda:1"]`.
    /// `"cuda:0+cuda:1"` splits the layers of one replica across both GPUs, in order. Replicas on the same device
    /// share the weights. Micro-batch i goes to replica i modulo the number of replicas.
    #[default(vec!["cpu".to_owned()])]
    #[schemars(length(min = 1, max = 64), extend("x-expected" = "1 to 64 devices"))]
    pub devices: Vec<String>,
    /// Dtype of the teacher's weights and matrix products: `fp32`, or `bf16` (for GPUs).
    #[default(Dtype::Fp32)]
    pub dtype: Dtype,
    /// Maximum sequences per forward pass. Default: a whole micro-batch. On a GPU, another value changes the last bits
    /// of the results.
    #[schemars(range(min = 1))]
    pub batch_size: Option<u64>,
    /// Number of libtorch threads per replica on the CPU.
    #[default = 1]
    #[schemars(range(min = 1, max = 256))]
    pub threads: usize,
    /// vLLM servers that compute the teacher's hidden states, one replica per entry: `["http://10.0.0.5:8000"]`. They
    /// replace `devices`. The folder `model` then needs only config.json, the tokenizer and the LM head. See
    /// docs/teachers.md.
    #[schemars(extend("examples" = [["http://10.0.0.5:8000"]]))]
    pub servers: Vec<String>,
    /// Name of the model on the servers. Default: the only model that they serve.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub served_model: Option<String>,
    /// Maximum number of concurrent requests per server.
    #[default = 4]
    #[schemars(range(min = 1, max = 256), extend("x-may-differ-on-resume" = true))]
    pub requests_in_flight: usize,
    /// Seconds after which DDK retries a request that a server has not answered.
    #[default = 300.0]
    #[schemars(range(max = LONGEST_SECONDS), extend("exclusiveMinimum" = 0, "x-may-differ-on-resume" = true))]
    pub request_timeout_seconds: f64,
    /// Seconds that the run waits for a server that does not answer, for example during a restart. Then the run fails.
    #[default = 600.0]
    #[schemars(range(min = 0, max = LONGEST_SECONDS), extend("x-may-differ-on-resume" = true))]
    pub patience_seconds: f64,
    /// Where DDK keeps the teacher's outputs, so that no run computes them again.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub cache: TeacherCache,
}

/// The cache of the teacher's outputs on disk. Runs, seeds and methods share it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherCache {
    /// Folder of the cache. Default: no cache.
    pub dir: Option<PathBuf>,
    /// Maximum size of the folder in bytes. At the limit, DDK stops adding to the cache. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_bytes: Option<u64>,
}

impl Teacher {
    /// Number of replicas: one per entry of `devices`, or as many workers per server as [`Self::workers_per_server`].
    pub fn replicas(&self) -> usize {
        match self.servers.len() {
            0 => self.devices.len(),
            servers => servers * self.workers_per_server(),
        }
    }

    /// Workers that ask each server: two if it takes two requests, so that it has the next one when it answers.
    pub fn workers_per_server(&self) -> usize {
        self.requests_in_flight.clamp(1, 2)
    }

    /// Address of the server that a replica asks.
    pub fn server_of(&self, replica: usize) -> Option<&String> {
        let servers = self.servers.len().max(1);
        self.servers.get(replica % servers)
    }

    /// Whether servers compute the hidden states.
    pub fn is_served(&self) -> bool {
        !self.servers.is_empty()
    }

    /// The devices that hold a replica's layers, in order.
    pub fn devices_of(&self, replica: usize) -> Vec<&str> {
        let replica = self.devices.get(replica);
        replica.map_or_else(Vec::new, |replica| replica.split('+').collect())
    }

    /// The devices of all replicas, in order, with repetitions.
    pub fn every_device(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().flat_map(|replica| replica.split('+'))
    }
}

/// The student model, which DDK trains.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Student {
    /// The initial student: a folder in Hugging Face format, or a name on the Hugging Face Hub. Required for training.
    pub model: Option<PathBuf>,
    /// Device of the student: `cpu`, or `cuda:0`, `cuda:1`, …
    #[default = "cpu"]
    pub device: String,
    /// Dtype of the student's matrix products: `fp32`, or `bf16` (for GPUs). Weights, gradients and optimizer moments
    /// are always fp32.
    #[default(Dtype::Fp32)]
    pub dtype: Dtype,
    /// Recompute the activations of each layer in the backward pass. The result is the same, with less memory and one
    /// extra forward pass.
    pub activation_checkpointing: bool,
    /// Number of libtorch threads on the CPU.
    #[default = 1]
    #[schemars(range(min = 1, max = 256))]
    pub threads: usize,
}

/// The optimizer: AdamW with decoupled weight decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Optimizer {
    /// Peak learning rate, at the end of the warmup.
    #[default = 3e-5]
    #[schemars(extend("exclusiveMinimum" = 0, "x-live" = true))]
    pub lr: f64,
    /// Decay rate of the first moment.
    #[default = 0.9]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// Decay rate of the second moment.
    #[default = 0.95]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// Term added to the square root of the second moment.
    #[default = 1e-8]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Weight decay, applied to matrices only.
    #[default = 0.1]
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// Clip gradients to this global norm.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub max_grad_norm: f64,
}

/// The learning-rate schedule: a linear warmup, then what `type` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct LrScheduler {
    /// Shape after the warmup: `cosine` or `linear` down to min_lr at the end of the schedule, `constant`, or `wsd`
    /// (warmup, stable, decay: constant, then a decay to min_lr over the last steps). See docs/methods.md.
    #[serde(rename = "type")]
    #[default(LrSchedule::Cosine)]
    pub shape: LrSchedule,
    /// Warmup steps, starting from a learning rate of 0.
    #[default = 1000]
    #[schemars(extend("x-quick" = 4))]
    pub warmup_steps: u64,
    /// Learning rate at the end of the schedule. `constant` does not use it.
    #[default = 3e-6]
    #[schemars(range(min = 0), extend("x-live" = true))]
    pub min_lr: f64,
    /// Steps of the whole schedule. An interval ends where the schedule ends, and later steps use min_lr. Default: the
    /// run's number of steps at its first start, even if the run is extended later.
    #[schemars(range(min = 1, max = MANY), extend("x-quick" = 4))]
    pub total_steps: Option<u64>,
    /// `wsd`: steps of the decay at the end of the schedule. Default: decay_fraction of the schedule.
    #[schemars(range(min = 1, max = MANY), extend("x-quick" = 4))]
    pub decay_steps: Option<u64>,
    /// `wsd`: share of the schedule that the decay takes, unless decay_steps is set.
    #[default = 0.1]
    #[schemars(range(max = 1), extend("exclusiveMinimum" = 0))]
    pub decay_fraction: f64,
    /// `wsd`: how the decay falls: `linear`, `cosine`, or `1-sqrt` (one minus the square root of the progress).
    #[default(LrDecay::Linear)]
    pub decay_type: LrDecay,
}

/// The learning rate after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum LrSchedule {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
    /// The peak to the end.
    Constant,
    /// The peak, then a decay at the end.
    Wsd,
}

/// The decay at the end of a `wsd` schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LrDecay {
    /// A straight line.
    Linear,
    /// Half a cosine.
    Cosine,
    /// One minus the square root of the progress.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// What the student minimizes: CE + gamma D, where D is a divergence from the teacher. `ted` adds a distance between
/// layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// The divergence D: `ce` (none), `forward_kl`, `reverse_kl`, `jsd`, `skew_kl`, `skew_reverse_kl`, `tvd`, or
    /// `ted` (forward_kl plus layers). `ted_filters` is the first stage of `ted` alone. See docs/methods.md.
    #[default(ObjectiveName::ForwardKl)]
    pub name: ObjectiveName,
    /// Weight of the divergence; 0 turns it off.
    #[default = 0.2]
    #[schemars(range(min = 0))]
    pub gamma: f64,
    /// Temperature of both softmaxes in the divergence.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub temperature: f64,
    /// Multiply the divergence and its gradient by the square of the temperature.
    pub scale_by_temperature_squared: bool,
    /// `jsd`: weight of the teacher in the mixture distribution M (docs/methods.md).
    #[default = 0.5]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    #[schemars(extend("x-expected" = "greater than 0 and less than 1 (at both ends the divergence is 0 everywhere)"))]
    pub beta: f64,
    /// `skew_kl` and `skew_reverse_kl`: weight a in KL(P ‖ a P + (1 - a) Q).
    #[default = 0.1]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub skew: f64,
    /// Exclude prompts, and in conversations all but the assistant's turns, from every term of the loss and from
    /// perplexities.
    pub completion_only_loss: bool,
    /// Number of positions for which DDK computes logits at a time. Default: depends on vocabulary and device.
    #[schemars(range(min = 1))]
    pub chunk_size: Option<i64>,
    /// `ted`: weight of the distance between layers.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub ted_weight: f64,
    /// `ted`: steps of the first stage, which trains the filters on the task while both models are frozen.
    #[default = 1000]
    #[schemars(range(min = 1, max = LARGE), extend("x-quick" = 4))]
    pub ted_steps: u64,
    /// `ted`: peak learning rate of the first stage. The warmup takes a twentieth of the steps, and a cosine then
    /// decays to a tenth of the peak.
    #[default = 1e-3]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub ted_lr: f64,
    /// `ted`: pairs of layers, counted from 1: [[student's, teacher's], …]. Default: four evenly spaced pairs; the last
    /// pair joins the last layers of both models.
    #[schemars(length(min = 1), extend("examples" = [[[2, 4]]]))]
    #[schemars(extend("x-expected" = "at least one pair of layers counted from 1, such as [[2, 4]]"))]
    pub ted_layers: Option<Vec<[u64; 2]>>,
}

impl Objective {
    /// The divergence with its parameters; `None` if the loss has none.
    pub fn divergence(&self) -> Option<Divergence> {
        let (beta, skew) = (self.beta, self.skew);
        match self.name {
            ObjectiveName::Ce | ObjectiveName::TedFilters => None,
            ObjectiveName::ForwardKl | ObjectiveName::Ted => Some(Divergence::ForwardKl),
            ObjectiveName::ReverseKl => Some(Divergence::ReverseKl),
            ObjectiveName::Jsd => Some(Divergence::Jsd { beta }),
            ObjectiveName::SkewKl => Some(Divergence::SkewKl { skew }),
            ObjectiveName::SkewReverseKl => Some(Divergence::SkewReverseKl { skew }),
            ObjectiveName::Tvd => Some(Divergence::TotalVariation),
        }
    }

    /// Whether the objective compares layers.
    pub fn has_layers(&self) -> bool {
        matches!(self.name, ObjectiveName::Ted | ObjectiveName::TedFilters)
    }
}

/// What the student minimizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, strum::Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum ObjectiveName {
    /// Cross-entropy alone, without the teacher.
    Ce,
    /// KL(teacher ‖ student).
    ForwardKl,
    /// KL(student ‖ teacher).
    ReverseKl,
    /// Generalized Jensen-Shannon divergence.
    Jsd,
    /// KL(teacher ‖ mixture).
    SkewKl,
    /// KL(student ‖ mixture).
    SkewReverseKl,
    /// Total variation distance.
    Tvd,
    /// Forward KL plus the distance between filtered layers.
    Ted,
    /// The first stage of `ted`: trains the filters while both models are frozen.
    TedFilters,
}

/// A model that `ddk pretrain` trains with cross-entropy alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Pretrain {
    /// Folder to write the model to. Required.
    #[schemars(extend("minLength" = 1, "x-expected" = "a folder"))]
    pub output_dir: PathBuf,
    /// Model to start from, a folder or a name on the Hugging Face Hub, instead of a new model with an `architecture`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// The shape of a new Llama model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Shape>,
    /// Number of optimizer steps. Required.
    #[schemars(range(min = 1, max = MANY))]
    pub steps: u64,
    /// Sequences per optimizer step.
    #[default = 16]
    #[schemars(range(min = 1, max = LARGE))]
    pub global_batch_size: u64,
    /// Sequences per micro-batch. Must divide global_batch_size.
    #[default = 8]
    #[schemars(range(min = 1, max = LARGE))]
    pub micro_batch_size: u64,
    /// Peak learning rate.
    #[default = 1e-3]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// Learning rate of the last step. Default: a tenth of lr.
    #[schemars(range(min = 0), extend("default" = null))]
    pub min_lr: f64,
    /// Warmup steps. Default: a twentieth of the steps.
    #[schemars(extend("default" = null))]
    pub warmup_steps: u64,
    /// AdamW's decoupled weight decay.
    #[default = 0.1]
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// Device to train on: `cpu`, or `cuda:0`, …
    #[default = "cpu"]
    pub device: String,
    /// Number of libtorch threads on the CPU. Default: all cores.
    #[default = 1]
    #[schemars(range(min = 1, max = 256), extend("default" = null))]
    pub threads: usize,
    /// Weight of each domain; omitted domains get 0. Default: the proportions of the corpus.
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<BTreeMap<String, f64>>,
    /// Seed of the initial weights and of the data order. Default: run.seed.
    #[schemars(extend("default" = null))]
    pub seed: u64,
}

/// The shape of a new Llama model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Width of the hidden states. Required.
    #[schemars(range(min = 1))]
    pub hidden_size: i64,
    /// Width of the MLP. Required.
    #[schemars(range(min = 1))]
    pub intermediate_size: i64,
    /// Number of layers. Required.
    #[schemars(range(min = 1))]
    pub num_hidden_layers: i64,
    /// Number of query heads. Required.
    #[schemars(range(min = 1))]
    pub num_attention_heads: i64,
    /// Number of key and value heads. Default: num_attention_heads.
    #[default = 1]
    #[schemars(range(min = 1), extend("default" = null))]
    pub num_key_value_heads: i64,
    /// Use the embedding as the LM head.
    pub tie_word_embeddings: bool,
    /// Base of the rotary embedding.
    #[default = 10_000.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub rope_theta: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_may_be_spread_over_devices() {
        let teacher = Teacher {
            devices: ["cuda:0+cuda:1", "cuda:2"].map(str::to_owned).to_vec(),
            ..Teacher::default()
        };
        assert_eq!(teacher.devices_of(0), ["cuda:0", "cuda:1"]);
        assert_eq!(teacher.devices_of(1), ["cuda:2"]);
        let every: Vec<&str> = teacher.every_device().collect();
        assert_eq!(every, ["cuda:0", "cuda:1", "cuda:2"]);
    }
}
