//! The trait of what trains on the student's worker: a [`crate::Student`], or TED's filters in the first stage
//! ([`crate::FilterStage`]).

use ddk_corpus::Sequence;
use ddk_model::Model;
use ddk_run::{MicroBatchSums, SnapshotFile, UpdateStats};
use tch::Tensor;

use crate::{EngineError, teacher::TeacherOutput, update::Updates};

/// Trains in steps of micro-batches, with snapshots between steps.
pub trait Trainable {
    /// The model whose perplexity is measured.
    fn model(&self) -> &Model;

    /// What trains, with its optimizer.
    fn updates(&mut self) -> &mut Updates;

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

    /// The gradients accumulated so far, in the optimizer's order.
    ///
    /// # Errors
    /// If libtorch fails.
    fn gradients(&self) -> Result<Vec<Tensor>, EngineError>;

    /// Ends a slot of the step, after its last micro-batch.
    ///
    /// # Errors
    /// If libtorch fails.
    fn end_slot(&mut self) -> Result<(), EngineError> {
        let gradients = self.gradients()?;
        if self.updates().end_slot(&gradients)? {
            self.clear_gradients()?;
        }
        Ok(())
    }

    /// Clips and applies the gradients accumulated since the last update, as step `step` (from 1). Skips the update
    /// if a loss or a gradient is not finite. If several processes share the step, all call this together.
    ///
    /// # Errors
    /// If libtorch fails.
    fn update(&mut self, step: u64) -> Result<UpdateStats, EngineError>;

    /// Drops the gradients accumulated since the last update.
    ///
    /// # Errors
    /// If libtorch fails.
    fn clear_gradients(&mut self) -> Result<(), EngineError>;

    /// Drops the gradients and makes no update in step `step`, for this reason.
    ///
    /// # Errors
    /// If libtorch fails.
    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, EngineError> {
        self.clear_gradients()?;
        Ok(self.updates().discard(step, reason))
    }

    /// Copies the trained parameters and their moments into the files of a checkpoint. Another thread can write them
    /// while training continues. If several processes share a step, all call this together. Only the first one gets
    /// files, and they are those of a single process.
    ///
    /// # Errors
    /// If libtorch or the exchange fails.
    fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, EngineError> {
        self.updates().snapshot()
    }

    /// Sets the schedule's peak and final learning rates.
    fn set_learning_rates(&mut self, peak: f64, end: f64) {
        let schedule = &mut self.updates().schedule;
        (schedule.peak, schedule.end) = (peak, end);
    }

    /// Marks this step's loss as not finite and returns NaN, for fault injection.
    fn poison(&mut self) -> f64 {
        self.updates().see(false);
        f64::NAN
    }
}
