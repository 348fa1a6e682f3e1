//! Dynamic batch loading of "Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning"
//! (ICLR 2024, arXiv 2310.06694).

use serde::{Deserialize, Serialize};

use crate::{
    Decision, Feedback, InitialMixture, Perplexities, Refused,
    decision::of_domains,
    equations::{combined, tilted},
};

/// Algorithm 1 of the paper: `w_t ∝ w_{t-1} * exp(max(loss - reference, 0))`, with losses on the validation
/// documents.
///
/// The authors' code omits the clipping and adds a floor; this is the paper's form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sheared {
    pub(super) update_every: u64,
    first: InitialMixture,
    /// Reference losses in nats, by domain; `None` stands for the teacher's loss.
    reference: Vec<Option<f64>>,
}

impl Sheared {
    /// `update_every` is in steps. `reference` holds losses in nats by domain; `None`: the teacher's loss.
    pub fn new(update_every: u64, first: InitialMixture, reference: Vec<Option<f64>>) -> Self {
        Self {
            update_every,
            first,
            reference,
        }
    }

    pub(crate) fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        Self {
            reference: of_domains(&self.reference, kept, None),
            ..self.clone()
        }
    }

    pub(super) fn first(
        &self,
        natural: &[f64],
        at_start: &Perplexities,
    ) -> Result<Decision, Refused> {
        self.first.weights(natural, at_start).map(Decision::of)
    }

    pub(super) fn next(
        &self,
        weights: &[f64],
        feedback: &Feedback<'_>,
    ) -> Result<Decision, Refused> {
        let perplexities = feedback.perplexities.ok_or(Refused::NotMeasured)?;
        perplexities.checked_ratios()?;
        let losses: Vec<f64> = perplexities.student.iter().map(|ppl| ppl.ln()).collect();
        let mut reference: Vec<f64> = perplexities.teacher.iter().map(|ppl| ppl.ln()).collect();
        for (reference, given) in reference.iter_mut().zip(&self.reference) {
            *reference = given.unwrap_or(*reference);
        }
        let behind = combined(&losses, &reference, |loss, reference| {
            (loss - reference).max(0.0)
        });
        Ok(Decision {
            previous: Some(weights.to_vec()),
            losses: Some(losses.into_iter().map(Some).collect()),
            reference: Some(reference),
            ..Decision::of(tilted(weights, &behind)?)
        })
    }
}
