//! The paper's ablation: Eq. 1 at every interval, with nothing carried over.

use serde::{Deserialize, Serialize};

use crate::{
    Decide, Decision, Feedback, InitialMixture, MixturePolicy, Needs, Perplexities, Refused,
    equations::discrepancy,
};

/// The weights of an interval are the discrepancy of the perplexities at its start: the softmax of the ratios.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DdkNoSmoothing {
    update_every: u64,
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
}

impl Decide for DdkNoSmoothing {
    fn name(&self) -> MixturePolicy {
        MixturePolicy::DdkNoSmoothing
    }

    fn needs(&self) -> Needs {
        Needs::Perplexities
    }

    fn update_every(&self) -> u64 {
        self.update_every
    }

    fn first(&mut self, natural: &[f64], at_start: &Perplexities) -> Result<Decision, Refused> {
        Ok(Decision {
            discrepancy: Some(discrepancy(&at_start.checked_ratios()?)?),
            weights: self.first.weights(natural, at_start)?,
            ..Decision::default()
        })
    }

    fn next(&mut self, _weights: &[f64], feedback: &Feedback<'_>) -> Result<Decision, Refused> {
        Ok(Decision {
            weights: discrepancy(&feedback.ratios()?)?,
            ..Decision::default()
        })
    }
}
