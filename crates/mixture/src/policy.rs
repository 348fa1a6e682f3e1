//! What decides the mixture.

use serde::{Deserialize, Serialize};

use crate::{FirstInterval, Refused};

/// Perplexities of both models on every domain's validation documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Perplexities {
    /// The student's.
    pub student: Vec<f64>,
    /// The teacher's.
    pub teacher: Vec<f64>,
}

/// No model is as bad as this on text, whatever its vocabulary: something is broken.
const ABSURD: f64 = 1e12;

impl Perplexities {
    /// Student's over teacher's, by domain: 1 where the student has caught up.
    pub fn ratios(&self) -> Vec<f64> {
        self.student
            .iter()
            .zip(&self.teacher)
            .map(|(student, teacher)| student / teacher)
            .collect()
    }

    /// The ratios, where both models have a positive finite perplexity on the same domains: two infinite or two negative
    /// perplexities would otherwise pass for a ratio.
    pub(crate) fn checked_ratios(&self) -> Result<Vec<f64>, Refused> {
        if self.student.len() != self.teacher.len() {
            return Err(Refused::Length {
                expected: self.teacher.len(),
                got: self.student.len(),
            });
        }
        for (model, perplexities) in [("student", &self.student), ("teacher", &self.teacher)] {
            for (domain, &value) in perplexities.iter().enumerate() {
                if !(value > 0.0 && value < ABSURD) {
                    return Err(Refused::Perplexity {
                        model,
                        domain,
                        value,
                    });
                }
            }
        }
        Ok(self.ratios())
    }
}

/// The mixture of an interval, and what it was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Weight of each domain; they sum to 1.
    pub weights: Vec<f64>,
    /// The weights that the update started from; none where there was no update.
    pub previous: Option<Vec<f64>>,
    /// Student's over teacher's perplexity.
    pub ratio: Vec<f64>,
    /// Eq. 1 of the perplexities at the start (first interval only).
    pub discrepancy: Option<Vec<f64>>,
}

/// Moves the mixture from interval to interval.
pub trait Policy: Send {
    /// Its name in configurations and in `mixture.jsonl`.
    fn name(&self) -> &'static str;

    /// Steps between two updates: the length of an interval.
    fn update_every(&self) -> u64;

    /// Weight of the discrepancy against the uniform floor, where the policy has one.
    fn alpha(&self) -> f64;

    /// The mixture of interval 0. `natural`: each domain's share of the corpus' tokens.
    fn first(&mut self, natural: &[f64], at_start: &Perplexities) -> Result<Decision, Refused>;

    /// The mixture of the next interval. Refused perplexities change nothing.
    fn next(&mut self, perplexities: &Perplexities) -> Result<Decision, Refused>;

    /// All it has to remember, for a checkpoint.
    fn state(&self) -> PolicyState;
}

/// A policy in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case")]
pub enum PolicyState {
    /// See [`crate::Ddk`].
    Ddk {
        /// Settings: weight of the discrepancy.
        alpha: f64,
        /// Settings: steps of an interval.
        update_every: u64,
        /// Settings: what interval 0 draws by.
        first: FirstInterval,
        /// r_t of Eq. 2; none before the first interval.
        factor: Option<Vec<f64>>,
    },
}

impl PolicyState {
    /// The state for another list of domains: `kept[i]` is where the new domain i was in the old list. Those that stay keep their
    /// proportions; a new one starts with an equal share.
    pub fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        let Self::Ddk {
            alpha,
            update_every,
            first,
            factor,
        } = self;
        Self::Ddk {
            alpha: *alpha,
            update_every: *update_every,
            first: *first,
            factor: factor
                .as_ref()
                .map(|factor| shares_of_domains(factor, kept)),
        }
    }
}

/// Shares for another list of domains; they sum to 1.
pub fn shares_of_domains(shares: &[f64], kept: &[Option<usize>]) -> Vec<f64> {
    let equal = 1.0 / kept.len().max(1) as f64;
    let of = |old: &Option<usize>| {
        old.and_then(|old| shares.get(old).copied())
            .unwrap_or(equal)
    };
    let new: Vec<f64> = kept.iter().map(of).collect();
    let sum: f64 = new.iter().sum();
    new.iter().map(|share| share / sum).collect()
}
