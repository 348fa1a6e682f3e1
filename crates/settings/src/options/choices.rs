//! Settings that are one of several words.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who shares the CPU's cores between teacher and student.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ThreadChoice {
    /// The settings of teacher and student.
    Given,
    /// A measurement of both.
    Auto,
}

/// How documents become rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Joined by their end tokens and cut at sequence_length.
    Concat,
    /// The same rows, but documents see nothing of each other.
    Document,
    /// Whole documents with little padding; they see nothing of each other.
    BestFit,
}

/// How a domain's files hold its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FileFormat {
    /// Each line is a record in JSON.
    Jsonl,
    /// Each row is a record.
    Parquet,
    /// Each file is one document.
    Text,
}

/// What to do with a prepared corpus that is not current.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhenStale {
    /// Prepare what changed.
    Prepare,
    /// Stop with an error.
    Refuse,
    /// Take it as it is.
    Use,
}

/// How documents are set aside for validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ValidationBy {
    /// validation_share of them, validation_documents at the most.
    Share,
    /// validation_documents of them.
    Count,
}

/// How the mixture moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MixturePolicy {
    /// Eq. 1 and 2 of the DDK paper.
    Ddk,
    /// Eq. 1 at each interval.
    DdkNoSmoothing,
    /// The same share for each domain.
    Equal,
    /// Each domain's share of the corpus' tokens.
    Natural,
    /// The given shares.
    Static,
    /// Dynamic batch loading of Sheared LLaMA.
    Sheared,
    /// Online Data Mixing.
    Odm,
    /// DoReMi: reference, proxy, and this run on the proxy's mean weights.
    Doremi,
    /// DoReMi's proxy: the teacher is the reference.
    DoremiProxy,
}

impl MixturePolicy {
    /// Whether it needs perplexities at each interval's end, so that they are measured.
    pub fn measures_perplexities(self) -> bool {
        matches!(self, Self::Ddk | Self::DdkNoSmoothing | Self::Sheared)
    }

    /// Whether it, or a phase of it, updates every step by what that step trained on.
    pub fn moves_every_step(self) -> bool {
        matches!(self, Self::Odm | Self::Doremi | Self::DoremiProxy)
    }

    /// The name that is written in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ddk => "ddk",
            Self::DdkNoSmoothing => "ddk-no-smoothing",
            Self::Equal => "equal",
            Self::Natural => "natural",
            Self::Static => "static",
            Self::Sheared => "sheared",
            Self::Odm => "odm",
            Self::Doremi => "doremi",
            Self::DoremiProxy => "doremi-proxy",
        }
    }
}

/// What the first interval draws by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FirstInterval {
    /// Each domain's share of the corpus' tokens.
    Natural,
    /// The same weight for each domain.
    Equal,
    /// The discrepancy of Eq. 1.
    Discrepancy,
}

/// Dtype of a model's matrix products; softmaxes and losses are always in fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32-bit floats.
    Fp32,
    /// bfloat16.
    Bf16,
}

/// What the student minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveName {
    /// Cross-entropy alone; the teacher is left out.
    Ce,
    /// KL(teacher ‖ student).
    ForwardKl,
    /// KL(student ‖ teacher).
    ReverseKl,
    /// Generalised Jensen-Shannon divergence.
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

/// Which student a run exports when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExportedStudent {
    /// The one after the last step.
    Last,
    /// The one that was nearest to the teacher, by the mean ratio of perplexities.
    Best,
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
    /// The last checkpoint is restored and the step's data passed over.
    RollBack,
}
