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
    /// `"cuda:0+cuda:1"` spreads the layers of one replica over both GPUs, in order.
    #[default(vec!["cpu".to_owned()])]
    #[schemars(length(min = 1), extend("x-expected" = "at least one device"))]
    pub devices: Vec<String>,
    /// Dtype of its weights and of its products: `fp32`, or `bf16` (GPUs).
    #[default(Dtype::Fp32)]
    pub dtype: Dtype,
    /// Maximum rows per forward pass; default: a whole micro-batch. Other passes give other last bits.
    #[schemars(range(min = 1))]
    pub batch_rows: Option<u64>,
    /// libtorch's threads of each lane on the CPU.
    #[default = 1]
    #[schemars(range(min = 1, max = 256))]
    pub threads: usize,
    /// Teachers side by side; micro-batch i goes to lane i modulo lanes.
    #[default = 1]
    #[schemars(range(min = 1, max = 64))]
    pub lanes: usize,
}

impl Teacher {
    /// Lanes of all replicas together.
    pub fn all_lanes(&self) -> usize {
        self.lanes * self.devices.len()
    }

    /// The devices that a lane's replica is spread over, in order. Lanes next to each other have different replicas.
    pub fn devices_of_lane(&self, lane: usize) -> Vec<&str> {
        let replica = self.devices.get(lane % self.devices.len().max(1));
        replica.map_or_else(Vec::new, |replica| replica.split('+').collect())
    }

    /// The devices of all replicas, in order; one that serves twice is there twice.
    pub fn every_device(&self) -> impl Iterator<Item = &str> {
        self.devices.iter().flat_map(|replica| replica.split('+'))
    }
}

/// The student and how it learns.
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
    /// Compute the activations inside a layer again in the backward instead of keeping them: the same result,
    /// less memory, one more forward.
    pub recompute: bool,
    /// libtorch's threads of its lane on the CPU.
    #[default = 1]
    #[schemars(range(min = 1, max = 256))]
    pub threads: usize,
    /// The highest learning rate.
    #[default = 3e-5]
    #[schemars(extend("exclusiveMinimum" = 0, "x-live" = true))]
    pub lr: f64,
    /// The learning rate at the schedule's end; a cosine leads to it.
    #[default = 3e-6]
    #[schemars(range(min = 0), extend("x-live" = true))]
    pub lr_end: f64,
    /// Steps of the linear warm-up from 0.
    #[default = 1000]
    #[schemars(extend("x-quick" = 4))]
    pub warmup_steps: u64,
    /// Steps of the schedule, which ends at lr_end; steps after it keep that rate, and an interval ends with
    /// it. As many as the run has when it is first started where absent, however many it is given later.
    #[schemars(range(min = 1, max = MANY), extend("x-quick" = 4))]
    pub schedule_steps: Option<u64>,
    /// AdamW's decoupled weight decay; matrices only.
    #[default = 0.1]
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
    /// AdamW's decay of the first moment.
    #[default = 0.9]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    #[default = 0.95]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub beta2: f64,
    /// AdamW's epsilon.
    #[default = 1e-8]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub epsilon: f64,
    /// Gradients are scaled down to this global norm.
    #[default = 1.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub clip_norm: f64,
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
    pub temperature_squared: bool,
    /// Weight of the teacher in the mixture that `jsd` compares both models with.
    #[default = 0.5]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    #[schemars(extend("x-expected" = "over 0 and under 1 (at both ends the divergence is 0 everywhere)"))]
    pub beta: f64,
    /// Share of the first distribution in the mixture that `skew_kl` and `skew_reverse_kl` compare it with.
    #[default = 0.1]
    #[schemars(range(min = 0), extend("exclusiveMaximum" = 1))]
    pub skew: f64,
    /// Leave the prompts of the domains that have some out of every term of the loss, and of perplexities.
    pub mask_prompt: bool,
    /// Positions whose logits are formed at a time; chosen by vocabulary and device where absent.
    #[schemars(range(min = 1))]
    pub chunk: Option<i64>,
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
    pub out: PathBuf,
    /// Folder of a model to start from, instead of a new one of this architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The shape of a new model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Shape>,
    /// Optimizer steps. Needed.
    #[schemars(range(min = 1, max = MANY))]
    pub steps: u64,
    /// Rows of an optimizer step.
    #[default = 16]
    #[schemars(range(min = 1, max = LARGE))]
    pub rows: u64,
    /// Rows of a micro-batch; divides rows.
    #[default = 8]
    #[schemars(range(min = 1, max = LARGE))]
    pub micro_rows: u64,
    /// The highest learning rate.
    #[default = 1e-3]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub lr: f64,
    /// The learning rate of the last step. Default: a tenth of lr.
    #[schemars(range(min = 0), extend("default" = null))]
    pub lr_end: f64,
    /// Steps of the warm-up. Default: a twentieth of the steps.
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
    /// Share of each domain; those left out get nothing. The corpus' own proportions where the table is absent.
    #[schemars(extend("additionalProperties" = {"type": "number", "minimum": 0}))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<BTreeMap<String, f64>>,
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
    pub layers: i64,
    /// Heads of the queries. Needed.
    #[schemars(range(min = 1))]
    pub heads: i64,
    /// Heads of keys and values. Default: as many as heads.
    #[default = 1]
    #[schemars(range(min = 1), extend("default" = null))]
    pub kv_heads: i64,
    /// Whether the output matrix is the embedding.
    pub tie: bool,
    /// Base of the rotary embedding.
    #[default = 10_000.0]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub rope_theta: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_take_replicas_in_turn_and_a_replica_may_be_spread() {
        let teacher = Teacher {
            devices: ["cuda:0+cuda:1", "cuda:2"].map(str::to_owned).to_vec(),
            lanes: 2,
            ..Teacher::default()
        };
        assert_eq!(teacher.all_lanes(), 4);
        let of_lanes: Vec<_> = (0..4).map(|lane| teacher.devices_of_lane(lane)).collect();
        let (spread, single) = (vec!["cuda:0", "cuda:1"], vec!["cuda:2"]);
        assert_eq!(
            of_lanes,
            [&spread, &single, &spread, &single].map(Clone::clone)
        );
        let every: Vec<&str> = teacher.every_device().collect();
        assert_eq!(every, ["cuda:0", "cuda:1", "cuda:2"]);
    }
}
