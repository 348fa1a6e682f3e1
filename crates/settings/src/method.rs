//! The methods in the paper's tables. A method is two choices: the mixture policy and the objective.

use std::{fmt, str::FromStr};

use ddk_mixture::MixturePolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IntoDeserializer, de::value::Error};

use crate::{Key, ObjectiveName};

/// A method, named as in the paper's tables.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
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
}

impl Method {
    /// All names, in the order of the paper.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let key = Key::of(&["method"]).into_iter();
        key.flat_map(|key| key.choices.iter().map(String::as_str))
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
        };
        [
            ("mixture.policy", policy.to_string()),
            ("objective.name", objective.to_string()),
        ]
    }
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::deserialize(name.into_deserializer())
    }
}

/// The name in configurations and on the command line.
impl fmt::Display for Method {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}
