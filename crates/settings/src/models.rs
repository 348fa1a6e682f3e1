//! The models: teacher, student, what is minimized, models that are pretrained.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use ddk_kernel::Divergence;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use smart_default::SmartDefault;

use crate::limits::{LARGE, MANY};

/// Dtype of a model's matrix products; softmaxes and losses are always in fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32-bit floats.
    Fp32,
    /// bfloat16.
    Bf16,
}

/// The frozen teacher.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Teacher {
    /// Its folder, in the Hugging Face format. Needed to train.
    pub model: Option<PathBuf>,
    /// One entry per replica of the teacher: `["cpu"]`, or GPUs such as `["cuda:0", "cuda:1"]`.
    /// `"cuda:0+cuda:1"` spreads the layers of one replica over both GPUs, in order. Replicas on the same device share
    /// its weights. Micro-batch i goes to replica i modulo their number.
    #[default(vec!["cpu".to_owned()])]
    #[schemars(length(min = 1, max = 64), extend("x-expected" = "1 to 64 devices"))]
    pub devices: Vec<String>,
    /// Dtype of its weights and of its products: `fp32`, or `bf16` (GPUs).
    #[default(Dtype::Fp32)]
    pub dtype: Dtype,
    /// Maximum sequences per forward pass; default: a whole micro-batch. Another value changes the last bits.
    #[schemars(range(min = 1))]
    pub batch_size: Option<u64>,
    /// libtorch's threads of each replica on the CPU.
    #[default = 1]
    #[schemars(range(min = 1, max = 256))]
    pub threads: usize,
}

impl Teacher {
    /// The devices that a replica is spread over, in order.
    pub fn devices_of(&self, replica: usize) -> Vec<&str> {
        let replica = self.devices.get(replica);
        replica.map_or_else(Vec::new, |replica| replica.split('+').collect())
    }

    /// The devices of all replicas, in order; one that serves twice is there twice.
    pub fn every_device(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().flat_map(|replica| replica.split('+'))
    }
}

/// The student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Student {
    /// Folder of the model that it starts as, in the Hugging Face format. Needed to train.
    pub model: Option<PathBuf>,
    /// `cpu`, or `cuda:0`, `cuda:1`, …
    #[default = "cpu"]
    pub device: String,
    /// Dtype of its products: `fp32`, or `bf16` (GPUs). Weights, gradients and moments are always fp32.
    #[default(Dtype::Fp32)]
    pub dtype: Dtype,
    /// Activation checkpointing: recompute the activations of a layer in the backward pass. Same result, less
    /// memory, one extra forward pass.
    pub activation_checkpointing: bool,
    /// libtorch's threads on the CPU.
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
    /// Decay of the first moment.
    #[default = 0.9]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// Decay of the second moment.
    #[default = 0.95]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// Added to the root of the second moment.
    #[default = 1e-8]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: f64,
    /// Weight decay, applied to matrices only.
    #[default = 0.1]
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// Gradients are clipped to this global norm.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub max_grad_norm: f64,
}

/// The learning-rate schedule: a linear warmup, then a cosine decay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct LrScheduler {
    /// Steps of the warmup, from a learning rate of 0.
    #[default = 1000]
    #[schemars(extend("x-quick" = 4))]
    pub warmup_steps: u64,
    /// Learning rate at the end of the schedule.
    #[default = 3e-6]
    #[schemars(range(min = 0), extend("x-live" = true))]
    pub min_lr: f64,
    /// Steps of the whole schedule; later steps use min_lr, and an interval ends with it. Default: the number of steps
    /// with which the run was first started, even if the run is extended later.
    #[schemars(range(min = 1, max = MANY), extend("x-quick" = 4))]
    pub total_steps: Option<u64>,
}

/// What the student minimizes: CE + gamma D, where D is a divergence from the teacher, and with `ted` a
/// distance between layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Objective {
    /// The divergence: `ce` (none), `forward_kl`, `reverse_kl`, `jsd`, `skew_kl`, `skew_reverse_kl`, `tvd`,
    /// or `ted` (forward_kl and layers; its first stage alone is `ted_filters`). See docs/methods.md.
    #[default(ObjectiveName::ForwardKl)]
    pub name: ObjectiveName,
    /// Weight of the divergence; 0 leaves it out.
    #[default = 0.2]
    #[schemars(range(min = 0))]
    pub gamma: f64,
    /// Temperature of both softmaxes in the divergence.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub temperature: f64,
    /// Multiply the divergence by the temperature's square, in value and gradient.
    pub scale_by_temperature_squared: bool,
    /// Weight of the teacher in the mixture that `jsd` compares both models with.
    #[default = 0.5]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    #[schemars(extend("x-expected" = "over 0 and under 1 (at both ends the divergence is 0 everywhere)"))]
    pub beta: f64,
    /// Share of the first distribution in the mixture that `skew_kl` and `skew_reverse_kl` compare it with.
    #[default = 0.1]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub skew: f64,
    /// Leave prompts out of every term of the loss, and of perplexities.
    pub completion_only_loss: bool,
    /// Positions whose logits are formed at a time; chosen by vocabulary and device where absent.
    #[schemars(range(min = 1))]
    pub chunk_size: Option<i64>,
    /// `ted`: weight of the distance between layers.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub ted_weight: f64,
    /// `ted`: steps of the first stage, in which the filters learn the task and both models are frozen.
    #[default = 1000]
    #[schemars(range(min = 1, max = LARGE), extend("x-quick" = 4))]
    pub ted_steps: u64,
    /// `ted`: the highest learning rate of the first stage; a warm-up of a twentieth of the steps leads to
    /// it, a cosine to a tenth of it.
    #[default = 1e-3]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub ted_lr: f64,
    /// `ted`: pairs of layers, counted from 1: [[student's, teacher's], …]. Four of them, evenly spread, the
    /// last one with the last one, where absent.
    #[schemars(length(min = 1), extend("examples" = [[[2, 4]]]))]
    #[schemars(extend("x-expected" = "at least one pair of layers counted from 1, such as [[2, 4]]"))]
    pub ted_layers: Option<Vec<[u64; 2]>>,
}

impl Objective {
    /// The divergence, with its parameters; none where the loss has none.
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

    /// Whether layers are compared.
    pub fn has_layers(&self) -> bool {
        matches!(self.name, ObjectiveName::Ted | ObjectiveName::TedFilters)
    }
}

/// What the student minimizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveName {
    /// Cross-entropy alone; the teacher is left out.
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
    /// Forward KL, and the distance between filtered layers.
    Ted,
    /// The first stage of `ted`: filters learn, both models are frozen.
    TedFilters,
}

impl fmt::Display for ObjectiveName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// A model that `ddk pretrain` makes, with cross-entropy alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Pretrain {
    /// Folder to write the model to. Needed.
    #[schemars(extend("minLength" = 1, "x-expected" = "a folder"))]
    pub output_dir: PathBuf,
    /// Folder of a model to start from, instead of a new one of this architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
    /// The shape of a new model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Shape>,
    /// Optimizer steps. Needed.
    #[schemars(range(min = 1, max = MANY))]
    pub steps: u64,
    /// Sequences per optimizer step.
    #[default = 16]
    #[schemars(range(min = 1, max = LARGE))]
    pub global_batch_size: u64,
    /// Sequences per micro-batch; divides global_batch_size.
    #[default = 8]
    #[schemars(range(min = 1, max = LARGE))]
    pub micro_batch_size: u64,
    /// Peak learning rate.
    #[default = 1e-3]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// The learning rate of the last step. Default: a tenth of lr.
    #[schemars(range(min = 0), extend("default" = null))]
    pub min_lr: f64,
    /// Steps of the warmup. Default: a twentieth of the steps.
    #[schemars(extend("default" = null))]
    pub warmup_steps: u64,
    /// AdamW's decoupled weight decay.
    #[default = 0.1]
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// `cpu`, or `cuda:0`, …
    #[default = "cpu"]
    pub device: String,
    /// libtorch's threads on the CPU. Default: all cores.
    #[default = 1]
    #[schemars(range(min = 1, max = 256), extend("default" = null))]
    pub threads: usize,
    /// Weight of each domain; those left out get 0. Default: the proportions of the corpus.
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<BTreeMap<String, f64>>,
    /// Seed of the new weights and of the data's order. Default: run.seed.
    #[schemars(extend("default" = null))]
    pub seed: u64,
}

/// The shape of a new Llama model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, SmartDefault)]
#[serde(default, deny_unknown_fields)]
pub struct Shape {
    /// Width of the hidden states. Needed.
    #[schemars(range(min = 1))]
    pub hidden_size: i64,
    /// Width of the MLP. Needed.
    #[schemars(range(min = 1))]
    pub intermediate_size: i64,
    /// Layers. Needed.
    #[schemars(range(min = 1))]
    pub num_hidden_layers: i64,
    /// Heads of the queries. Needed.
    #[schemars(range(min = 1))]
    pub num_attention_heads: i64,
    /// Heads of keys and values. Default: num_attention_heads.
    #[default = 1]
    #[schemars(range(min = 1), extend("default" = null))]
    pub num_key_value_heads: i64,
    /// Whether the LM head is the embedding.
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
