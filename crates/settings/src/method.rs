//! The methods in the paper's tables. A method is two choices: the mixture policy and the objective.

use ddk_mixture::MixturePolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, VariantNames};

use crate::ObjectiveName;

/// A method, named as in the paper's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[derive(JsonSchema, Display, EnumString, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Method {
    /// Continued pretraining: cross-entropy alone, the natural mixture.
    Cpt,
    /// Cross-entropy alone, the mixture that DoReMi finds.
    CptDoremi,
    /// Knowledge distillation: forward KL, the natural mixture.
    Kd,
    /// Task-aware layer-wise distillation, the natural mixture.
    Ted,
    /// The paper's MiniLLM: reverse KL, the natural mixture.
    Minillm,
    /// Forward KL, the mixture of Eq. 1 and 2.
    Ddk,
    /// Forward KL, the mixture of Eq. 1 alone.
    DdkNoSmoothing,
    /// Forward KL, equal weights.
    DdkEqual,
    /// Forward KL, shares by the excess loss. Not in the paper.
    Excess,
}

impl Method {
    /// All names, in the order of the paper, then those that are not in it.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Self::VARIANTS.iter().copied()
    }

    /// The two choices, each as a key and its value.
    pub fn choices(self) -> [(&'static str, String); 2] {
        let (policy, objective) = match self {
            Self::Cpt => (MixturePolicy::Natural, ObjectiveName::Ce),
            Self::CptDoremi => (MixturePolicy::Doremi, ObjectiveName::Ce),
            Self::Kd => (MixturePolicy::Natural, ObjectiveName::ForwardKl),
            Self::Ted => (MixturePolicy::Natural, ObjectiveName::Ted),
            Self::Minillm => (MixturePolicy::Natural, ObjectiveName::ReverseKl),
            Self::Ddk => (MixturePolicy::Ddk, ObjectiveName::ForwardKl),
            Self::DdkNoSmoothing => (MixturePolicy::DdkNoSmoothing, ObjectiveName::ForwardKl),
            Self::DdkEqual => (MixturePolicy::Equal, ObjectiveName::ForwardKl),
            Self::Excess => (MixturePolicy::Excess, ObjectiveName::ForwardKl),
        };
        [
            ("mixture.policy", policy.to_string()),
            ("objective.name", objective.to_string()),
        ]
    }
}
