//! The proxy of "DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining" (NeurIPS 2023, arXiv
//! 2305.10429).

use serde::{Deserialize, Serialize};

use crate::{
    Decision, Feedback, InitialMixture, Perplexities, Refused,
    decision::{of_domains, shares_of_domains},
    equations::{lift, tilted},
};

/// Algorithm 1 of the paper, at every step. A domain's score is the mean over its predictions of
/// `max(loss - reference, 0)`, and `w_t = (1 - c) normalized(w_{t-1} * exp(eta * score)) + c / N`. The result is
/// the mean of w over the steps.
///
/// A domain that was not drawn keeps its last score. Before it is drawn for the first time, its score is the loss
/// of a model that knows nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DoremiProxy {
    eta: f64,
    /// c.
    smoothing: f64,
    first: InitialMixture,
    /// A domain's score before it is drawn for the first time: the logarithm of the vocabulary size.
    initial_score: f64,
    scores: Vec<f64>,
    /// Sum of the weights over the updates.
    sum: Vec<f64>,
    updates: u64,
}

impl DoremiProxy {
    /// `eta` is the step size, `smoothing` the c of the paper, `initial_score` the log of the vocabulary size.
    pub fn new(eta: f64, smoothing: f64, initial_score: f64, first: InitialMixture) -> Self {
        Self {
            eta,
            smoothing,
            first,
            initial_score,
            scores: Vec::new(),
            sum: Vec::new(),
            updates: 0,
        }
    }

    /// Mean of the weights over the updates; `None` before the first.
    pub fn mean_weights(&self) -> Option<Vec<f64>> {
        let updates = self.updates as f64;
        (self.updates > 0).then(|| self.sum.iter().map(|sum| sum / updates).collect())
    }

    pub(crate) fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        let mean = shares_of_domains(&self.mean_weights().unwrap_or_default(), kept);
        let updates = self.updates as f64;
        Self {
            scores: of_domains(&self.scores, kept, self.initial_score),
            sum: mean.iter().map(|mean| mean * updates).collect(),
            ..self.clone()
        }
    }

    pub(super) fn first(
        &mut self,
        natural: &[f64],
        at_start: &Perplexities,
    ) -> Result<Decision, Refused> {
        let weights = self.first.weights(natural, at_start)?;
        self.scores = vec![self.initial_score; weights.len()];
        self.sum = vec![0.0; weights.len()];
        self.updates = 0;
        Ok(Decision::of(weights))
    }

    pub(super) fn next(
        &mut self,
        weights: &[f64],
        feedback: &Feedback<'_>,
    ) -> Result<Decision, Refused> {
        let measured = feedback.training.excesses()?;
        let mut scores = self.scores.clone();
        scores.resize(measured.len(), self.initial_score);
        for (score, measured) in scores.iter_mut().zip(measured) {
            *score = measured.unwrap_or(*score);
        }
        let tilt: Vec<f64> = scores.iter().map(|score| self.eta * score).collect();
        let mut new = tilted(weights, &tilt)?;
        lift(&mut new, 1.0 - self.smoothing);
        self.sum.resize(new.len(), 0.0);
        for (sum, weight) in self.sum.iter_mut().zip(&new) {
            *sum += weight;
        }
        self.updates += 1;
        self.scores.clone_from(&scores);
        Ok(Decision {
            previous: Some(weights.to_vec()),
            excess: Some(scores),
            mean_weights: self.mean_weights(),
            ..Decision::of(new)
        })
    }
}
