//! The root of a configuration.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Checkpoint, Corpus, Domain, Error, Evaluation, FaultInjection, Log, LrScheduler, Method,
    Mixture, Objective, Optimizer, Pipeline, Pretrain, Recovery, Run, Student, Teacher, Telemetry,
    Training,
};

/// A configuration of DDK. Paths are relative to the folder in which `ddk` is started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// What `mixture.policy` and `objective.name` are where they are not written, by the names of the paper's
    /// rows: `cpt` (natural, ce), `cpt-doremi` (doremi, ce), `kd` (natural, forward_kl), `ted` (natural,
    /// ted), `minillm` (natural, reverse_kl), `ddk` (ddk, forward_kl), `ddk-no-smoothing`, `ddk-equal`
    /// (equal, forward_kl). Must come before the first table of a file.
    // The two settings that it stands for are compared themselves.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub method: Option<Method>,
    /// The run: its name, its end, its seed.
    pub run: Run,
    /// How text becomes sequences of tokens.
    pub corpus: Corpus,
    /// The domains, one table each: `[domains.math]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub domains: BTreeMap<String, Domain>,
    /// The frozen teacher.
    pub teacher: Teacher,
    /// The student.
    pub student: Student,
    /// Batch sizes.
    pub training: Training,
    /// The optimizer: AdamW with decoupled weight decay.
    pub optimizer: Optimizer,
    /// The learning-rate schedule: a linear warmup, then a cosine decay.
    pub lr_scheduler: LrScheduler,
    /// How the mixture of domains moves.
    pub mixture: Mixture,
    /// What the student minimizes: CE + gamma D, where D is a divergence from the teacher, and with `ted` a
    /// distance between layers.
    pub objective: Objective,
    /// How teacher and student share the machine.
    pub pipeline: Pipeline,
    /// How perplexities are measured.
    pub evaluation: Evaluation,
    /// When the run is saved.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub checkpoint: Checkpoint,
    /// What to do if something goes wrong. DDK never makes an update whose loss or gradient is not finite.
    pub recovery: Recovery,
    /// Faults on purpose, for tests; refused unless DDK_ALLOW_FAULTS=1 is in the environment.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub fault_injection: FaultInjection,
    /// The server of the live page, metrics and health.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub telemetry: Telemetry,
    /// What DDK reports while it runs.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub log: Log,
    /// Models that `ddk pretrain` makes, one table each: `[pretrain.teacher]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub pretrain: BTreeMap<String, Pretrain>,
}

impl Settings {
    /// Writes the settings as a configuration file.
    ///
    /// # Errors
    /// If a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string_pretty(self).map_err(|error| Error::not_written(&error))
    }
}
