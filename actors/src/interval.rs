//! An interval: a mixture, the sequences that it draws, and everything needed to draw them again.

use std::sync::Arc;

use ddk_corpus::Cursor;
use ddk_mixture::{Perplexities, Policy, Quota, interval_order, numbers_or_null};
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
    /// The policy after its decision.
    pub policy: Policy,
    /// The quota after this interval's draw.
    pub quota: Quota,
    /// The cursor of each domain before it.
    pub cursors: Vec<Cursor>,
    /// The last evaluation before it.
    pub evaluated: Evaluation,
    /// The mean gaps of the evaluations up to that one.
    #[serde(default)]
    pub patience: Patience,
    /// Its line in `mixture.jsonl`, which the student writes before its first step. None if it is already written.
    #[serde(skip)]
    pub line: Option<Arc<MixtureLine>>,
}

/// An evaluation of the student, as an interval stores it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The step after which it was made.
    pub step: u64,
    /// Perplexities by domain. Those that are not finite are NaN once a checkpoint held them.
    #[serde(deserialize_with = "numbers_or_null")]
    pub student: Vec<f64>,
}

impl Evaluation {
    /// Both models' perplexities.
    pub fn beside(&self, teacher: &[f64]) -> Perplexities {
        Perplexities {
            student: self.student.clone(),
            teacher: teacher.to_vec(),
        }
    }
}

/// What `run.patience` counts, over the evaluations after step 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Patience {
    /// The mean gap of the last evaluation that improved it, in nats per token.
    pub best: Option<f64>,
    /// Evaluations since then.
    pub since: u64,
}

impl Patience {
    /// Counts an evaluation with these gaps. It improves the mean gap if that falls by more than `min_improvement`; a
    /// mean gap that is not finite improves nothing.
    #[must_use]
    pub fn after(self, gaps: &[f64], min_improvement: f64) -> Self {
        let gap = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let improves = |best: f64| best - gap > min_improvement;
        if gap.is_finite() && self.best.is_none_or(improves) {
            return Self {
                best: Some(gap),
                since: 0,
            };
        }
        Self {
            since: self.since + 1,
            ..self
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

    /// The cursor of each domain after these numbers of sequences. `domain_sequences` holds the sequences per epoch, by
    /// domain.
    pub fn cursors_after(&self, drawn: &[u64], domain_sequences: &[u64]) -> Vec<Cursor> {
        let rows = drawn.iter().zip(domain_sequences);
        let cursors = self.cursors.iter().zip(rows);
        cursors
            .map(|(cursor, (&drawn, &rows))| cursor.advance(rows, drawn))
            .collect()
    }
}
