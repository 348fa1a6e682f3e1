//! What learns on the student's worker: a [`crate::Student`], or TED's filters in their first stage
//! ([`crate::FilterStage`]).

use ddk_corpus::Sequence;
use ddk_model::Model;
use ddk_run::{MicroBatchSums, UpdateStats};

use crate::{EngineError, snapshot::Snapshot, teacher::TeacherOutput};

/// Steps of micro-batches, and snapshots in between.
pub trait Trainable {
    /// The model whose perplexity is measured.
    fn model(&self) -> &Model;

    /// Adds the gradients of one micro-batch. `denominator` is the number of predictions of the whole
    /// optimizer step, so that micro-batches of any size add up to the mean over the step.
    ///
    /// # Errors
    /// If libtorch fails, or the shapes of the batch do not fit the model.
    fn accumulate(
        &mut self,
        rows: &[&Sequence],
        teacher: Option<&TeacherOutput>,
        denominator: f64,
    ) -> Result<MicroBatchSums, EngineError>;

    /// Clips and applies the gradients gathered since the last update, as step `step` (from 1); skips the
    /// update where a loss or a gradient is not finite.
    ///
    /// # Errors
    /// If libtorch fails.
    fn update(&mut self, step: u64) -> Result<UpdateStats, EngineError>;

    /// Drops the gradients gathered since the last update.
    ///
    /// # Errors
    /// If libtorch fails.
    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, EngineError>;

    /// A copy of what learns and of its moments, which a writer thread can save while training continues.
    ///
    /// # Errors
    /// If libtorch fails, or a tensor cannot be serialized.
    fn snapshot(&self) -> Result<Snapshot, EngineError>;

    /// Changes the schedule's highest learning rate and the one that it ends at.
    fn set_learning_rates(&mut self, peak: f64, end: f64);

    /// Takes this step's loss for not finite, for faults on purpose.
    fn poison(&mut self) -> f64;
}
