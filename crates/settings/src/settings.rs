//! The root of the configuration.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Checkpoint, Corpus, Domain, Error, Evaluation, FaultInjection, Log, LrScheduler, Method,
    Mixture, Objective, Optimizer, Parallel, Pipeline, Places, Pretrain, Recovery, Run, Samples,
    Student, Teacher, Telemetry, Training,
};

/// A DDK configuration. Paths are relative to the folder in which `ddk` is started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Method, named as in the paper's tables. It sets the defaults of `mixture.policy` and `objective.name`: `cpt`
    /// (natural, ce), `cpt-doremi` (doremi, ce), `kd` (natural, forward_kl), `ted` (natural, ted), `minillm` (natural,
    /// reverse_kl), `ddk` (ddk, forward_kl), `ddk-no-smoothing` (ddk-no-smoothing, forward_kl), `ddk-equal` (equal,
    /// forward_kl), `excess` (excess, forward_kl). Must come before the first table of a file.
    // On resume, DDK compares the two settings that it stands for.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub method: Option<Method>,
    /// Name, length and seed of the run.
    pub run: Run,
    /// How text becomes sequences of tokens.
    pub corpus: Corpus,
    /// The text of the domains, one table per domain: `[domains.math]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub domains: BTreeMap<String, Domain>,
    /// The frozen teacher.
    pub teacher: Teacher,
    /// The student model, which DDK trains.
    pub student: Student,
    /// Batch sizes.
    pub training: Training,
    /// The optimizer: AdamW with decoupled weight decay.
    pub optimizer: Optimizer,
    /// The learning-rate schedule: a linear warmup, then a cosine decay.
    pub lr_scheduler: LrScheduler,
    /// How the mixture of domains changes during a run.
    pub mixture: Mixture,
    /// What the student minimizes: CE + gamma D, with D a divergence from the teacher. `ted` adds a distance between
    /// layers.
    pub objective: Objective,
    /// How the teacher and the student share the machine.
    pub pipeline: Pipeline,
    /// How several processes share each step.
    pub parallel: Parallel,
    /// How DDK measures perplexities.
    pub evaluation: Evaluation,
    /// When DDK saves checkpoints, and which ones it keeps.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub checkpoint: Checkpoint,
    /// How the run recovers from failures. DDK always skips an update whose loss or gradient is not finite.
    pub recovery: Recovery,
    /// Faults that DDK injects for tests. They require DDK_ALLOW_FAULTS=1 in the environment.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub fault_injection: FaultInjection,
    /// The server of the live page, the metrics and the health checks.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub telemetry: Telemetry,
    /// What DDK reports during a run.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub log: Log,
    /// Texts that show what the models write.
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub samples: Samples,
    /// Models that `ddk pretrain` trains, one table per model: `[pretrain.teacher]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("x-may-differ-on-resume" = true))]
    pub pretrain: BTreeMap<String, Pretrain>,
    /// Where the names from the Hugging Face Hub are on this machine.
    #[serde(skip)]
    pub places: Places,
}

impl Settings {
    /// The folder of the corpus's tokenizer, or its name on the Hub: `corpus.tokenizer`, or else `student.model`.
    pub fn tokenizer_folder(&self) -> Option<&PathBuf> {
        self.corpus
            .tokenizer
            .as_ref()
            .or(self.student.model.as_ref())
    }

    /// Formats the settings as a configuration file.
    ///
    /// # Errors
    /// If a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string_pretty(self).map_err(|error| Error::not_written(&error))
    }
}
