//! All policies: their names in a configuration, and one type to store them in checkpoints.

mod ddk;
mod ddk_no_smoothing;
mod doremi_proxy;
mod excess;
mod fixed;
mod odm;
mod sheared;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    ddk::Ddk, ddk_no_smoothing::DdkNoSmoothing, doremi_proxy::DoremiProxy, excess::Excess,
    fixed::Fixed, odm::Odm, sheared::Sheared,
};
use crate::{Decision, Feedback, Needs, Perplexities, Refused};

/// How the mixture changes during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum MixturePolicy {
    /// Eq. 1 and 2 of the DDK paper.
    Ddk,
    /// Shares in proportion to the excess loss over the teacher, fading to equal shares.
    Excess,
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
    /// What it needs to know at the end of an interval.
    pub fn needs(self) -> Needs {
        match self {
            Self::Ddk | Self::DdkNoSmoothing | Self::Excess | Self::Sheared => Needs::Perplexities,
            Self::Equal | Self::Natural | Self::Static | Self::Doremi => Needs::Nothing,
            Self::Odm => Needs::Losses,
            Self::DoremiProxy => Needs::Excess,
        }
    }

    /// Whether it needs perplexities at the end of each interval.
    pub fn measures_perplexities(self) -> bool {
        self.needs() == Needs::Perplexities
    }

    /// Whether its weights follow from the configuration and the corpus alone.
    pub fn is_fixed(self) -> bool {
        match self {
            Self::Equal | Self::Natural | Self::Static => true,
            Self::Ddk | Self::DdkNoSmoothing | Self::Excess | Self::Sheared => false,
            Self::Odm | Self::Doremi | Self::DoremiProxy => false,
        }
    }

    /// Whether it, or one of its phases, updates at every step from what that step trained on.
    pub fn moves_every_step(self) -> bool {
        match self {
            Self::Odm | Self::Doremi | Self::DoremiProxy => true,
            Self::Ddk | Self::DdkNoSmoothing | Self::Excess | Self::Sheared => false,
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

/// A policy with its state, as a checkpoint stores it. It updates the mixture from interval to interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case")]
#[allow(missing_docs)] // Each is the policy of its name.
pub enum Policy {
    Ddk(Ddk),
    DdkNoSmoothing(DdkNoSmoothing),
    Excess(Excess),
    Fixed(Fixed),
    Sheared(Sheared),
    Odm(Odm),
    DoremiProxy(DoremiProxy),
}

impl Policy {
    /// Its name in configurations and in `mixture.jsonl`.
    pub fn name(&self) -> MixturePolicy {
        match self {
            Self::Ddk(_) => MixturePolicy::Ddk,
            Self::DdkNoSmoothing(_) => MixturePolicy::DdkNoSmoothing,
            Self::Excess(_) => MixturePolicy::Excess,
            Self::Fixed(policy) => policy.origin,
            Self::Sheared(_) => MixturePolicy::Sheared,
            Self::Odm(_) => MixturePolicy::Odm,
            Self::DoremiProxy(_) => MixturePolicy::DoremiProxy,
        }
    }

    /// What it needs to know at the end of an interval.
    pub fn needs(&self) -> Needs {
        self.name().needs()
    }

    /// Steps between two updates: the length of an interval. A policy that updates every step cannot run ahead.
    pub fn update_every(&self) -> u64 {
        match self {
            Self::Ddk(policy) => policy.update_every,
            Self::DdkNoSmoothing(policy) => policy.update_every,
            Self::Excess(policy) => policy.update_every,
            Self::Fixed(policy) => policy.update_every,
            Self::Sheared(policy) => policy.update_every,
            Self::Odm(_) | Self::DoremiProxy(_) => 1,
        }
    }

    /// Weight of the discrepancy relative to the uniform floor; `None` if the policy has no such weight.
    pub fn alpha(&self) -> Option<f64> {
        match self {
            Self::Ddk(policy) => Some(policy.alpha),
            _ => None,
        }
    }

    /// The mixture of interval 0. `natural` holds each domain's share of the corpus' tokens.
    ///
    /// # Errors
    /// If a perplexity that the policy needs is not a positive finite number.
    pub fn first(&mut self, natural: &[f64], at_start: &Perplexities) -> Result<Decision, Refused> {
        match self {
            Self::Ddk(policy) => policy.first(natural, at_start),
            Self::DdkNoSmoothing(policy) => policy.first(natural, at_start),
            Self::Excess(policy) => policy.first(at_start),
            Self::Fixed(policy) => policy.decision(),
            Self::Sheared(policy) => policy.first(natural, at_start),
            Self::Odm(policy) => policy.first(natural),
            Self::DoremiProxy(policy) => policy.first(natural, at_start),
        }
    }

    /// The mixture of the next interval. `weights` are those of the interval that ended. Refused feedback changes
    /// nothing.
    ///
    /// # Errors
    /// If the feedback lacks what the policy needs, or a number in it is not finite.
    pub fn next(&mut self, weights: &[f64], feedback: &Feedback<'_>) -> Result<Decision, Refused> {
        match self {
            Self::Ddk(policy) => policy.next(feedback),
            Self::DdkNoSmoothing(policy) => policy.next(feedback),
            Self::Excess(policy) => policy.next(weights, feedback),
            Self::Fixed(policy) => policy.decision(),
            Self::Sheared(policy) => policy.next(weights, feedback),
            Self::Odm(policy) => policy.next(weights, feedback),
            Self::DoremiProxy(policy) => policy.next(weights, feedback),
        }
    }

    /// Converts the policy to another list of domains: `kept[i]` is the index of new domain i in the old list.
    /// Domains that stay keep their proportions; a new one starts with an equal share.
    pub fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        match self {
            Self::Ddk(policy) => Self::Ddk(policy.of_domains(kept)),
            Self::DdkNoSmoothing(policy) => Self::DdkNoSmoothing(policy.clone()),
            Self::Excess(policy) => Self::Excess(policy.of_domains(kept)),
            Self::Fixed(policy) => Self::Fixed(policy.of_domains(kept)),
            Self::Sheared(policy) => Self::Sheared(policy.of_domains(kept)),
            Self::Odm(policy) => Self::Odm(policy.of_domains(kept)),
            Self::DoremiProxy(policy) => Self::DoremiProxy(policy.of_domains(kept)),
        }
    }
}
