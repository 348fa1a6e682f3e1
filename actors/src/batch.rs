//! What moves through the data queues.

use std::{ops::Range, sync::Arc, time::Instant};

use ddk_corpus::Sample;

use crate::Interval;

/// All sequences of an optimizer step. Every rank draws all of them, because the cursors and the lines of the run's
/// files depend on all.
#[derive(Debug)]
pub struct StepDraw {
    /// The step, from 1.
    pub step: u64,
    /// The interval, and with it the mixture, that the sequences were drawn from.
    pub interval: Arc<Interval>,
    /// The sequences, in training order.
    pub samples: Vec<Sample>,
    /// Predicted tokens of the whole step: the divisor of losses and gradients.
    pub predictions: u64,
    /// When the interval was set, so that a wait for a mixture does not count as a wait for data.
    pub interval_set: Instant,
}

/// The part of an optimizer step that the teacher and the student process at once. It lies within one slot.
#[derive(Debug)]
pub struct MicroBatch {
    /// Its number in this process, from 0. It determines the replica and the order.
    pub sequence: u64,
    /// The step's sequences.
    pub draw: Arc<StepDraw>,
    /// The range of its sequences among those of the step.
    pub rows: Range<usize>,
    /// Whether it is the last of its slot, so that the slot's gradients are complete after it.
    pub last_of_slot: bool,
    /// Whether it is the last of its step on this rank.
    pub last_of_step: bool,
}

impl MicroBatch {
    /// Its step, from 1.
    pub fn step(&self) -> u64 {
        self.draw.step
    }

    /// The interval, and with it the mixture, that its sequences were drawn from.
    pub fn interval(&self) -> &Arc<Interval> {
        &self.draw.interval
    }

    /// Its sequences.
    pub fn samples(&self) -> &[Sample] {
        &self.draw.samples[self.rows.clone()]
    }

    /// Its tokens, without padding.
    pub fn tokens(&self) -> u64 {
        tokens(self.samples())
    }

    /// Seconds since `began` that a worker waited for this batch. Time before its interval was set does not count,
    /// because then only the mixture was missing.
    pub fn waited_since(&self, began: Instant) -> f64 {
        began.max(self.draw.interval_set).elapsed().as_secs_f64()
    }

    /// Its predicted tokens.
    pub fn num_targets(&self) -> u64 {
        let samples = self.samples().iter();
        samples.map(|sample| sample.sequence.num_targets()).sum()
    }
}

/// The tokens of sequences, without padding.
pub(crate) fn tokens(samples: &[Sample]) -> u64 {
    let sequences = samples.iter().map(|sample| &sample.sequence);
    sequences.map(|sequence| sequence.tokens.len() as u64).sum()
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
