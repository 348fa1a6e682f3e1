//! The paper's ablation: Eq. 1 at every interval, with nothing carried over.

use serde::{Deserialize, Serialize};

use crate::{Decision, Feedback, InitialMixture, Perplexities, Refused, equations::discrepancy};

/// The weights of an interval are the discrepancy of the perplexities at its start: the softmax of the ratios.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DdkNoSmoothing {
    pub(super) update_every: u64,
    first: InitialMixture,
}

impl DdkNoSmoothing {
    /// `update_every` is K, in steps.
    pub fn new(update_every: u64, first: InitialMixture) -> Self {
        Self {
            update_every,
            first,
        }
    }

    pub(super) fn first(
        &self,
        natural: &[f64],
        at_start: &Perplexities,
    ) -> Result<Decision, Refused> {
        Ok(Decision {
            discrepancy: Some(discrepancy(&at_start.checked_ratios()?)?),
            ..Decision::of(self.first.weights(natural, at_start)?)
        })
    }

    pub(super) fn next(&self, feedback: &Feedback<'_>) -> Result<Decision, Refused> {
        discrepancy(&feedback.ratios()?).map(Decision::of)
    }
}
