//! All policies: their names in a configuration, and one type for checkpoints.

mod ddk;
mod ddk_no_smoothing;
mod doremi_proxy;
mod fixed;
mod odm;
mod sheared;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    ddk::Ddk, ddk_no_smoothing::DdkNoSmoothing, doremi_proxy::DoremiProxy, fixed::Fixed, odm::Odm,
    sheared::Sheared,
};
use crate::Decide;

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
}

/// The name that is written in a configuration.
impl fmt::Display for MixturePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// A policy that a checkpoint can hold.
pub trait Policy: Decide {
    /// All it has to remember.
    fn state(&self) -> PolicyState;
}

macro_rules! policies {
    ($($name:ident),+) => {
        /// A policy in a checkpoint.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "policy", rename_all = "kebab-case")]
        #[allow(missing_docs)] // Each is the policy of its name.
        pub enum PolicyState {
            $($name($name),)+
        }

        impl PolicyState {
            /// The policy, to continue with.
            pub fn into_policy(self) -> Box<dyn Policy> {
                match self {
                    $(Self::$name(policy) => Box::new(policy),)+
                }
            }
        }

        $(impl Policy for $name {
            fn state(&self) -> PolicyState {
                PolicyState::$name(self.clone())
            }
        })+
    };
}

policies!(Ddk, DdkNoSmoothing, Fixed, Sheared, Odm, DoremiProxy);

impl PolicyState {
    /// The state for another list of domains: `kept[i]` is where the new domain i was in the old list. Those
    /// that stay keep their proportions; a new one starts with an equal share.
    pub fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        match self {
            Self::Ddk(policy) => Self::Ddk(policy.of_domains(kept)),
            Self::DdkNoSmoothing(policy) => Self::DdkNoSmoothing(policy.clone()),
            Self::Fixed(policy) => Self::Fixed(policy.of_domains(kept)),
            Self::Sheared(policy) => Self::Sheared(policy.of_domains(kept)),
            Self::Odm(policy) => Self::Odm(policy.of_domains(kept)),
            Self::DoremiProxy(policy) => Self::DoremiProxy(policy.of_domains(kept)),
        }
    }
}
