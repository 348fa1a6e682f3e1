//! The trait of what trains on the student's worker: a [`crate::Student`], or TED's filters in the first stage
//! ([`crate::FilterStage`]).

use ddk_corpus::Sequence;
use ddk_model::Model;
use ddk_run::{MicroBatchSums, UpdateStats};

use crate::{EngineError, snapshot::Snapshot, teacher::TeacherOutput};

/// Trains in steps of micro-batches, with snapshots between steps.
pub trait Trainable {
    /// The model whose perplexity is measured.
    fn model(&self) -> &Model;

    /// Accumulates the gradients of one micro-batch. `denominator` is the number of predictions in the whole
    /// optimizer step, so micro-batches of any size add up to the mean over the step.
    ///
    /// # Errors
    /// If libtorch fails, or the shapes of the batch do not fit the model.
    fn accumulate(
        &mut self,
        rows: &[&Sequence],
        teacher: Option<&TeacherOutput>,
        denominator: f64,
    ) -> Result<MicroBatchSums, EngineError>;

    /// Clips and applies the gradients accumulated since the last update, as step `step` (from 1). Skips the update
    /// if a loss or a gradient is not finite.
    ///
    /// # Errors
    /// If libtorch fails.
    fn update(&mut self, step: u64) -> Result<UpdateStats, EngineError>;

    /// Drops the gradients accumulated since the last update.
    ///
    /// # Errors
    /// If libtorch fails.
    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, EngineError>;

    /// Copies the trained parameters and their moments, so that another thread can write them while training
    /// continues.
    ///
    /// # Errors
    /// If libtorch fails, or a tensor cannot be serialized.
    fn snapshot(&self) -> Result<Snapshot, EngineError>;

    /// Sets the schedule's peak and final learning rates.
    fn set_learning_rates(&mut self, peak: f64, end: f64);

    /// Marks this step's loss as not finite and returns NaN, for fault injection.
    fn poison(&mut self) -> f64;
}
