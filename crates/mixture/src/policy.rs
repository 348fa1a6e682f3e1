//! All policies: their names in a configuration, and one type to store them in checkpoints.

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

/// How the mixture changes during a run.
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
    /// The given weights.
    Static,
    /// Dynamic batch loading of Sheared LLaMA.
    Sheared,
    /// Online Data Mixing.
    Odm,
    /// DoReMi: a reference run, a proxy run, and this run with the proxy's mean weights.
    Doremi,
    /// DoReMi's proxy, with the teacher as the reference.
    DoremiProxy,
}

impl MixturePolicy {
    /// Whether it needs perplexities at the end of each interval.
    pub fn measures_perplexities(self) -> bool {
        match self {
            Self::Ddk | Self::DdkNoSmoothing | Self::Sheared => true,
            Self::Equal | Self::Natural | Self::Static => false,
            Self::Odm | Self::Doremi | Self::DoremiProxy => false,
        }
    }

    /// Whether it, or one of its phases, updates at every step from what that step trained on.
    pub fn moves_every_step(self) -> bool {
        match self {
            Self::Odm | Self::Doremi | Self::DoremiProxy => true,
            Self::Ddk | Self::DdkNoSmoothing | Self::Sheared => false,
            Self::Equal | Self::Natural | Self::Static => false,
        }
    }
}

/// The name in a configuration.
impl fmt::Display for MixturePolicy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// A policy that a checkpoint can store.
pub trait Policy: Decide {
    /// Everything that the policy has to remember.
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
            /// Converts the state back into a policy.
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
    /// Converts the state to another list of domains: `kept[i]` is the index of new domain i in the old list.
    /// Domains that stay keep their proportions; a new one starts with an equal share.
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
