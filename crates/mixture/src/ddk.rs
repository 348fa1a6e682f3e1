//! The paper's policy: discrepancy-guided weights with a smooth update.

use serde::{Deserialize, Serialize};

use crate::{
    Decision, Perplexities, Policy, PolicyState, Refused,
    equations::{check_weights, discrepancy, smooth_update},
};

/// What the first interval draws by, before any update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirstInterval {
    /// Each domain's share of the corpus' tokens: the corpus as it is (Algorithm 1).
    Natural,
    /// The same weight for each domain.
    Equal,
    /// The discrepancy factor r_0 of Eq. 1.
    Discrepancy,
}

/// Equations 1 and 2: r_0 is the discrepancy at the start; each later interval draws by
/// `r_{t+1} = alpha * normalised(r_t * exp(ratio)) + (1 - alpha) / N`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ddk {
    alpha: f64,
    update_every: u64,
    first: FirstInterval,
    factor: Option<Vec<f64>>,
}

impl Ddk {
    /// `alpha` from 0 (equal weights) to 1 (no floor); `update_every` is K, in steps.
    pub fn new(alpha: f64, update_every: u64, first: FirstInterval) -> Self {
        Self {
            alpha,
            update_every,
            first,
            factor: None,
        }
    }

    /// Goes on from a checkpoint.
    pub fn restore(state: PolicyState) -> Self {
        let PolicyState::Ddk {
            alpha,
            update_every,
            first,
            factor,
        } = state;
        Self {
            alpha,
            update_every,
            first,
            factor,
        }
    }
}

impl Policy for Ddk {
    fn name(&self) -> &'static str {
        "ddk"
    }

    fn update_every(&self) -> u64 {
        self.update_every
    }

    fn alpha(&self) -> f64 {
        self.alpha
    }

    fn first(&mut self, natural: &[f64], at_start: &Perplexities) -> Result<Decision, Refused> {
        let ratio = at_start.checked_ratios()?;
        check_weights(natural, ratio.len())?;
        let factor = discrepancy(&ratio)?;
        let weights = match self.first {
            FirstInterval::Natural => natural.to_vec(),
            FirstInterval::Equal => vec![1.0 / natural.len() as f64; natural.len()],
            FirstInterval::Discrepancy => factor.clone(),
        };
        self.factor = Some(factor.clone());
        Ok(Decision {
            weights,
            previous: None,
            ratio,
            discrepancy: Some(factor),
        })
    }

    fn next(&mut self, perplexities: &Perplexities) -> Result<Decision, Refused> {
        let ratio = perplexities.checked_ratios()?;
        let previous = match &self.factor {
            Some(factor) => factor.clone(),
            None => discrepancy(&ratio)?,
        };
        let weights = smooth_update(&previous, &ratio, self.alpha)?;
        self.factor = Some(weights.clone());
        Ok(Decision {
            weights,
            previous: Some(previous),
            ratio,
            discrepancy: None,
        })
    }

    fn state(&self) -> PolicyState {
        PolicyState::Ddk {
            alpha: self.alpha,
            update_every: self.update_every,
            first: self.first,
            factor: self.factor.clone(),
        }
    }
}
