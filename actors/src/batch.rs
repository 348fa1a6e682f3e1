//! What moves through the data queues.

use std::{sync::Arc, time::Instant};

use ddk_corpus::Sample;

use crate::Interval;

/// The part of an optimizer step that the teacher and the student process at once.
#[derive(Debug)]
pub struct MicroBatch {
    /// Its number in this process, from 0. It determines the replica and the order.
    pub sequence: u64,
    /// Its step, from 1.
    pub step: u64,
    /// Whether it is the last of its step.
    pub last_of_step: bool,
    /// The interval, and with it the mixture, that its sequences were drawn from.
    pub interval: Arc<Interval>,
    /// Its sequences.
    pub samples: Vec<Sample>,
    /// Predicted tokens of the whole step: the divisor of losses and gradients.
    pub step_predictions: u64,
    /// When the interval was set, so that a wait for a mixture does not count as a wait for data.
    pub interval_set: Instant,
}

impl MicroBatch {
    /// Its tokens, without padding.
    pub fn tokens(&self) -> u64 {
        let sequences = self.samples.iter().map(|sample| &sample.sequence);
        sequences.map(|sequence| sequence.tokens.len() as u64).sum()
    }

    /// Seconds since `began` that a worker waited for this batch. Time before its interval was set does not count,
    /// because then only the mixture was missing.
    pub fn waited_since(&self, began: Instant) -> f64 {
        began.max(self.interval_set).elapsed().as_secs_f64()
    }

    /// Its predicted tokens.
    pub fn num_targets(&self) -> u64 {
        let samples = self.samples.iter();
        samples.map(|sample| sample.sequence.num_targets()).sum()
    }
}

/// A micro-batch with the teacher's output.
#[derive(Debug)]
pub struct LabeledBatch<TeacherOutput> {
    /// The micro-batch.
    pub batch: Arc<MicroBatch>,
    /// The teacher's output for it.
    pub signal: TeacherOutput,
    /// Seconds that the teacher's worker waited for its sequences.
    pub data_wait: f64,
    /// Seconds that the teacher took to label it.
    pub teacher_seconds: f64,
}
