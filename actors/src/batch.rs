//! What goes over the data queues.

use std::{sync::Arc, time::Instant};

use ddk_corpus::Sample;

use crate::Interval;

/// Part of an optimizer step: what teacher and student take at a time.
#[derive(Debug)]
pub struct MicroBatch {
    /// Counts the micro-batches of this process from 0; replica and order follow from it.
    pub sequence: u64,
    /// The step that it belongs to, from 1.
    pub step: u64,
    /// Whether it is the step's last.
    pub last_of_step: bool,
    /// The interval, and with it the mixture, that its rows were drawn by.
    pub interval: Arc<Interval>,
    /// Its samples.
    pub samples: Vec<Sample>,
    /// Predictions of the whole step: what losses and gradients are divided by.
    pub step_predictions: u64,
    /// When the interval was set, so that waiting for a mixture is not taken for waiting for data.
    pub interval_set: Instant,
}

impl MicroBatch {
    /// Its tokens, without padding.
    pub fn tokens(&self) -> u64 {
        let samples = self.samples.iter();
        samples
            .map(|sample| sample.sequence.tokens.len() as u64)
            .sum()
    }

    /// Seconds since `began` that a worker waited for this batch. Time before its interval was set does not count:
    /// only the mixture was missing then.
    pub fn waited_since(&self, began: Instant) -> f64 {
        began.max(self.interval_set).elapsed().as_secs_f64()
    }

    /// Its predicted tokens.
    pub fn num_targets(&self) -> u64 {
        let samples = self.samples.iter();
        samples.map(|sample| sample.sequence.num_targets()).sum()
    }
}

/// A micro-batch with what the teacher says about it.
#[derive(Debug)]
pub struct LabeledBatch<TeacherOutput> {
    /// The micro-batch.
    pub batch: Arc<MicroBatch>,
    /// The teacher's word.
    pub signal: TeacherOutput,
    /// Seconds that the teacher's worker waited for the rows.
    pub data_wait: f64,
    /// Seconds that it took to label them.
    pub teacher_seconds: f64,
}
