//! The decision that a policy returns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Perplexities, Refused,
    equations::{check_weights, discrepancy},
};

/// The mixture of an interval, and the values that it is based on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// Weight of each domain; they sum to 1.
    pub weights: Vec<f64>,
    /// The weights that the update started from; `None` if there was no update.
    pub previous: Option<Vec<f64>>,
    /// Eq. 1 applied to the perplexities at the start (first interval only).
    pub discrepancy: Option<Vec<f64>>,
    /// The losses that the decision is based on, in nats; `None` for a domain that was not drawn.
    pub losses: Option<Vec<Option<f64>>>,
    /// The reference losses that those are compared with.
    pub reference: Option<Vec<f64>>,
    /// The excess over the reference that the decision is based on, in nats.
    pub excess: Option<Vec<f64>>,
    /// Mean of the weights over the updates so far.
    pub mean_weights: Option<Vec<f64>>,
}

impl Decision {
    /// A decision for these weights, without anything else to record.
    pub fn of(weights: Vec<f64>) -> Self {
        Self {
            weights,
            ..Self::default()
        }
    }
}

/// The mixture of the first interval, before any update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InitialMixture {
    /// Each domain's share of the corpus' tokens: the corpus as it is (Algorithm 1).
    Natural,
    /// The same weight for each domain.
    Equal,
    /// The discrepancy factor r_0 of Eq. 1.
    Discrepancy,
}

impl InitialMixture {
    pub(crate) fn weights(
        self,
        natural: &[f64],
        at_start: &Perplexities,
    ) -> Result<Vec<f64>, Refused> {
        check_weights(natural, at_start.student.len())?;
        match self {
            Self::Natural => Ok(natural.to_vec()),
            Self::Equal => Ok(vec![1.0 / natural.len() as f64; natural.len()]),
            Self::Discrepancy => discrepancy(&at_start.checked_ratios()?),
        }
    }
}

/// Converts shares to another list of domains. The result sums to 1. If no kept domain had a share, all are equal.
pub fn shares_of_domains(shares: &[f64], kept: &[Option<usize>]) -> Vec<f64> {
    let equal = 1.0 / kept.len().max(1) as f64;
    let new = of_domains(shares, kept, equal);
    let sum: f64 = new.iter().sum();
    if sum <= 0.0 {
        return vec![equal; kept.len()];
    }
    new.iter().map(|share| share / sum).collect()
}

/// Converts values to another list of domains. A new domain gets `otherwise`.
pub(crate) fn of_domains<T: Copy>(values: &[T], kept: &[Option<usize>], otherwise: T) -> Vec<T> {
    let of = |old: &Option<usize>| values.get((*old)?).copied();
    let new = kept.iter().map(|old| of(old).unwrap_or(otherwise));
    new.collect()
}
