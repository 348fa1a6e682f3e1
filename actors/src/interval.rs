//! An interval: a mixture, the sequences that it draws, and everything needed to draw them again.

use std::sync::Arc;

use ddk_corpus::Cursor;
use ddk_mixture::{Perplexities, PolicyState, Quota, interval_order};
use ddk_run::records::MixtureLine;
use serde::{Deserialize, Serialize};

/// An interval as the weight scheduler sets it. It travels with every micro-batch, so any step's checkpoint can hold
/// it. The order of its sequences follows from it and the seed alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its index, from 0; also the version of its mixture.
    pub index: u64,
    /// Its first step.
    pub first_step: u64,
    /// The number of its steps.
    pub steps: u64,
    /// The policy's weights, by domain.
    pub weights: Vec<f64>,
    /// The shares after limits, by domain.
    pub target: Vec<f64>,
    /// The number of sequences drawn from each domain.
    pub counts: Vec<u64>,
    /// The policy's state after its decision.
    pub policy: PolicyState,
    /// The quota after this interval's draw.
    pub quota: Quota,
    /// The cursor of each domain before it.
    pub cursors: Vec<Cursor>,
    /// The last evaluation before it.
    pub evaluated: Evaluation,
    /// Its line in `mixture.jsonl`, which the student writes before its first step. None if it is already written.
    #[serde(skip)]
    pub line: Option<Arc<MixtureLine>>,
}

/// An evaluation of the student, as an interval stores it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The step after which it was made.
    pub step: u64,
    /// Perplexities by domain; none if not finite.
    pub student: Vec<Option<f64>>,
}

impl Evaluation {
    /// An evaluation with the student's perplexities after `step`.
    pub fn new(step: u64, student: &[f64]) -> Self {
        let finite = |value: &f64| value.is_finite().then_some(*value);
        Self {
            step,
            student: student.iter().map(finite).collect(),
        }
    }

    /// Both models' perplexities. Values that were not finite are NaN.
    pub fn perplexities(&self, teacher: &[f64]) -> Perplexities {
        let number = |value: &Option<f64>| value.unwrap_or(f64::NAN);
        Perplexities {
            student: self.student.iter().map(number).collect(),
            teacher: teacher.to_vec(),
        }
    }
}

impl Interval {
    /// The domain of each of its sequences, in training order.
    pub fn order(&self, seed: u64) -> Vec<u16> {
        interval_order(&self.counts, seed, self.index)
    }

    /// Its last step.
    pub fn last_step(&self) -> u64 {
        self.first_step + self.steps - 1
    }

    /// The index of the next interval. An interval without steps precedes the first one.
    pub fn next_index(&self) -> u64 {
        self.index + u64::from(self.steps > 0)
    }

    /// The cursor of each domain after the first `rows` sequences of `order`. `domain_sequences` holds the sequences
    /// per epoch, by domain.
    pub fn cursors_after(
        &self,
        order: &[u16],
        rows: usize,
        domain_sequences: &[u64],
    ) -> Vec<Cursor> {
        let mut drawn = vec![0; self.cursors.len()];
        for &domain in &order[..rows.min(order.len())] {
            drawn[usize::from(domain)] += 1;
        }
        self.advanced(&drawn, domain_sequences)
    }

    /// The cursor of each domain after the whole interval.
    pub fn cursors_at_end(&self, domain_sequences: &[u64]) -> Vec<Cursor> {
        self.advanced(&self.counts, domain_sequences)
    }

    fn advanced(&self, drawn: &[u64], domain_sequences: &[u64]) -> Vec<Cursor> {
        let rows = drawn.iter().zip(domain_sequences);
        let cursors = self.cursors.iter().zip(rows);
        cursors
            .map(|(cursor, (&drawn, &rows))| cursor.advance(rows, drawn))
            .collect()
    }
}
