//! All policies as one type, for checkpoints.

use serde::{Deserialize, Serialize};

use crate::{Ddk, DdkNoSmoothing, Decide, DoremiProxy, Fixed, Odm, Sheared};

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
