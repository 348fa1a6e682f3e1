//! Mixtures that never change: equal, natural, given, or found by DoReMi's proxy.

use serde::{Deserialize, Serialize};

use crate::{
    Decision, MixturePolicy, Refused, decision::shares_of_domains, equations::check_weights,
};

/// The same shares in every interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fixed {
    /// Where the shares come from: equal, natural, static or DoReMi.
    pub(super) origin: MixturePolicy,
    pub(super) update_every: u64,
    /// They sum to 1.
    shares: Vec<f64>,
}

impl Fixed {
    /// `shares` are 0 or more, with any sum over 0. `update_every` is the length of the intervals in which
    /// sequences are drawn.
    pub fn new(origin: MixturePolicy, shares: &[f64], update_every: u64) -> Self {
        let sum: f64 = shares.iter().sum();
        Self {
            origin,
            update_every,
            shares: shares.iter().map(|share| share / sum).collect(),
        }
    }

    pub(crate) fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        Self {
            shares: shares_of_domains(&self.shares, kept),
            ..self.clone()
        }
    }

    pub(super) fn decision(&self) -> Result<Decision, Refused> {
        check_weights(&self.shares, self.shares.len())?;
        Ok(Decision::of(self.shares.clone()))
    }
}
