//! Methods by the names of the paper's rows: a method is two choices, how the mixture moves and what the
//! student minimises.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::origin::Origin;

/// A row of the paper's tables.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Continued pre-training: cross-entropy alone, the corpus as it is.
    Cpt,
    /// Cross-entropy alone, a mixture by DoReMi.
    CptDoremi,
    /// Knowledge distillation: forward KL, the corpus as it is.
    Kd,
    /// Task-aware layer-wise distillation, the corpus as it is.
    Ted,
    /// The paper's MiniLLM: reverse KL, the corpus as it is.
    Minillm,
    /// Forward KL, the mixture of Eq. 1 and 2.
    Ddk,
    /// Forward KL, the mixture of Eq. 1 alone.
    DdkNoSmoothing,
    /// Forward KL, the same share for each domain.
    DdkEqual,
}

impl Method {
    /// All of them, as the paper lists them.
    pub const ALL: [Self; 8] = [
        Self::Cpt,
        Self::CptDoremi,
        Self::Kd,
        Self::Ted,
        Self::Minillm,
        Self::Ddk,
        Self::DdkNoSmoothing,
        Self::DdkEqual,
    ];

    /// Its name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpt => "cpt",
            Self::CptDoremi => "cpt-doremi",
            Self::Kd => "kd",
            Self::Ted => "ted",
            Self::Minillm => "minillm",
            Self::Ddk => "ddk",
            Self::DdkNoSmoothing => "ddk-no-smoothing",
            Self::DdkEqual => "ddk-equal",
        }
    }

    /// The method of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// The two choices: each key with its value.
    pub fn choices(self) -> [(&'static str, &'static str); 2] {
        let (policy, objective) = match self {
            Self::Cpt => ("natural", "ce"),
            Self::CptDoremi => ("doremi", "ce"),
            Self::Kd => ("natural", "forward_kl"),
            Self::Ted => ("natural", "ted"),
            Self::Minillm => ("natural", "reverse_kl"),
            Self::Ddk => ("ddk", "forward_kl"),
            Self::DdkNoSmoothing => ("ddk-no-smoothing", "forward_kl"),
            Self::DdkEqual => ("equal", "forward_kl"),
        };
        [("mixture.policy", policy), ("objective.name", objective)]
    }

    /// The choices as a layer, directly above the defaults.
    pub(crate) fn layer(self) -> String {
        let lines = self.choices();
        let lines = lines.map(|(key, value)| format!("{key} = \"{value}\"\n"));
        lines.concat()
    }

    pub(crate) fn origin(self) -> Origin {
        Origin::Method(self)
    }
}
