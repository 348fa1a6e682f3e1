//! What the program uses: validated, with nothing optional that need not be. Keys as in [`crate::Options`], so that a
//! run's `config.toml` reads back to the same settings.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;

use crate::{
    Dtype, ExportedStudent, FileFormat, FirstInterval, Method, MixturePolicy, ObjectiveName,
    Packing, Spike, ThreadChoice, Token, ValidationBy, WhenStale,
};

/// All settings of a run. See [`crate::Options`] for what each means.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    pub run: Run,
    pub corpus: Corpus,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub domains: BTreeMap<String, Domain>,
    pub teacher: Teacher,
    pub student: Student,
    pub batch: Batch,
    pub mixture: Mixture,
    pub objective: Objective,
    pub queues: Queues,
    pub evaluation: Evaluation,
    pub checkpoint: Checkpoint,
    pub guard: Guard,
    pub faults: Faults,
    pub telemetry: Telemetry,
    pub log: Log,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pretrain: BTreeMap<String, Pretrain>,
}

/// `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Run {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub folder: PathBuf,
    pub seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_intervals: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_ratio: Option<f64>,
    pub export: ExportedStudent,
    pub trace: bool,
    pub take_turns: bool,
    pub deterministic: bool,
    pub threads: ThreadChoice,
}

/// `[corpus]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Corpus {
    pub folder: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    pub sequence_length: usize,
    pub packing: Packing,
    pub when_stale: WhenStale,
    pub validation_by: ValidationBy,
    pub validation_share: f64,
    pub validation_documents: usize,
    pub max_bad_share: f64,
}

/// `[domains.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Domain {
    pub files: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub validation_files: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<FileFormat>,
    /// A template: `text_field` is one of a single field.
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_documents: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    pub min_document_bytes: u64,
    pub max_document_bytes: u64,
}

/// `[teacher]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Teacher {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    pub devices: Vec<String>,
    pub dtype: Dtype,
    pub threads: usize,
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

/// `[student]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Student {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    pub device: String,
    pub dtype: Dtype,
    pub recompute: bool,
    pub threads: usize,
    pub lr: f64,
    pub lr_end: f64,
    pub warmup_steps: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_steps: Option<u64>,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub clip_norm: f64,
}

/// `[batch]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Batch {
    pub rows: u64,
    pub micro_rows: u64,
}

/// `[mixture]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Mixture {
    pub policy: MixturePolicy,
    pub alpha: f64,
    pub interval: u64,
    pub lag: u64,
    pub first: FirstInterval,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_passes: Option<f64>,
    pub odm_smoothing: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doremi_model: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub doremi_steps: Option<u64>,
    pub doremi_eta: f64,
    pub doremi_smoothing: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<BTreeMap<String, f64>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reference_loss: BTreeMap<String, f64>,
}

/// `[objective]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Objective {
    pub name: ObjectiveName,
    pub gamma: f64,
    pub temperature: f64,
    pub temperature_squared: bool,
    pub beta: f64,
    pub skew: f64,
    pub mask_prompt: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk: Option<i64>,
    pub ted_weight: f64,
    pub ted_steps: u64,
    pub ted_lr: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ted_layers: Option<Vec<[u64; 2]>>,
}

/// `[queues]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Queues {
    pub depth: usize,
}

/// `[evaluation]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Evaluation {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    pub batch_rows: usize,
}

/// `[checkpoint]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Checkpoint {
    pub every: u64,
    pub keep: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_every: Option<u64>,
    pub keep_best: bool,
}

/// `[guard]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Guard {
    pub max_skipped: u64,
    pub max_rollbacks: u64,
    pub spike: Spike,
    pub spike_sigmas: f64,
    pub spike_window: usize,
    pub spike_from: usize,
    pub grace_seconds: f64,
    pub compute_limit_seconds: f64,
}

/// `[faults]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Faults {
    pub plan: Vec<String>,
}

/// `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Telemetry {
    pub enabled: bool,
    pub address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    pub required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Log {
    pub line_seconds: f64,
}

/// `[pretrain.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Pretrain {
    pub out: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Shape>,
    pub steps: u64,
    pub rows: u64,
    pub micro_rows: u64,
    pub lr: f64,
    pub lr_end: f64,
    pub warmup_steps: u64,
    pub weight_decay: f64,
    pub device: String,
    pub threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<BTreeMap<String, f64>>,
    pub seed: u64,
}

/// `[pretrain.NAME.architecture]`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Shape {
    pub hidden_size: i64,
    pub intermediate_size: i64,
    pub layers: i64,
    pub heads: i64,
    pub kv_heads: i64,
    pub tie: bool,
    pub rope_theta: f64,
}

impl Settings {
    /// The settings as a configuration file.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_take_replicas_in_turn_and_a_replica_may_be_spread() {
        let teacher = Teacher {
            model: None,
            devices: ["cuda:0+cuda:1", "cuda:2"].map(str::to_owned).to_vec(),
            dtype: Dtype::Bf16,
            threads: 1,
            lanes: 2,
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
