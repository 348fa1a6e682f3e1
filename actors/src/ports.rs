//! What the actors need from outside: models, rows, somebody who watches. The program joins these to `ddk-engine` and
//! `ddk-corpus`; the tests to fakes.

use std::sync::Arc;

use ddk_corpus::{Cursor, Sample};
use ddk_run::{
    CheckpointStore, Journal, MicroBatchSums, Overrides, SnapshotFile, UpdateStats,
    records::{EventLine, MixtureLine, StepRecord},
};
use ddk_telemetry::{Board, Progress};

use crate::{MicroBatch, Totals};

/// An error of a port, by what can be done about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Data that cannot be read; the message names file and offset.
    #[error("{0}")]
    Data(String),
    /// A device has no memory left.
    #[error("{message}")]
    OutOfMemory {
        /// For what.
        during: Work,
        /// What the device said.
        message: String,
    },
    /// Training went wrong: the run has to rewind to its last checkpoint and skip the data of these steps.
    #[error("steps {first} to {last}: {reason}")]
    RollBack {
        /// The first step to pass over.
        first: u64,
        /// The last one.
        last: u64,
        /// What went wrong.
        reason: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// What a model does: each has a size of its own that can be made smaller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The teacher labels a micro-batch.
    Label,
    /// The student learns from one, updates, or is copied.
    Train,
    /// A model is evaluated.
    Evaluate,
}

/// Called before each batch of an evaluation with the documents done and those there are; true cuts it off.
pub type Between<'a> = &'a dyn Fn(u64, u64) -> bool;

/// The frozen teacher, on the thread that built it.
pub trait Teacher {
    /// What it says about a batch.
    type TeacherOutput: Send + 'static;
    /// A copy of a student's weights.
    type Weights: Send + 'static;

    /// Labels a micro-batch. Must be the same for the same batch, on any worker.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn label(&mut self, batch: &MicroBatch) -> Result<Self::TeacherOutput, PortError>;

    /// Perplexity on each domain's validation documents; `None` where `between` cut it off.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError>;

    /// As [`Self::perplexities`], of a student as it was when it gave these weights.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn perplexities_of(
        &mut self,
        weights: &Self::Weights,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError>;

    /// Seconds that this worker has been busy since it was built.
    fn busy_seconds(&self) -> f64;
}

/// The student, on the thread that built it.
pub trait Student {
    /// What the teacher says about a batch.
    type TeacherOutput: Send + 'static;
    /// A copy of its weights.
    type Weights: Send + 'static;

    /// Adds a micro-batch's gradients, divided by the predictions of its whole step.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn accumulate(
        &mut self,
        batch: &MicroBatch,
        signal: Self::TeacherOutput,
    ) -> Result<MicroBatchSums, PortError>;

    /// Updates the weights as step `step`.
    ///
    /// # Errors
    /// If the device fails or runs out of memory, or if the run must rewind.
    fn update(&mut self, step: u64) -> Result<UpdateStats, PortError>;

    /// Drops the step's gradients: weights and moments stay as they are.
    ///
    /// # Errors
    /// If the device fails.
    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, PortError>;

    /// Perplexity on each domain's validation documents; `None` where `between` cut it off.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError>;

    /// A copy of its weights, for an evaluation elsewhere while it learns on.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn weights(&mut self) -> Result<Self::Weights, PortError>;

    /// A copy of all that its next steps depend on, as files of a checkpoint that another thread writes.
    ///
    /// # Errors
    /// If the device fails, or a tensor cannot be serialized.
    fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, PortError>;

    /// Seconds that this worker has been busy since it was built.
    fn busy_seconds(&self) -> f64;
}

/// A domain's rows, one after the other, without end.
pub trait Rows: Send {
    /// The next row.
    ///
    /// # Errors
    /// If the data cannot be read or does not match its checksum.
    fn read(&mut self) -> Result<Sample, PortError>;
}

/// Somebody who watches a run; called from the run's threads, so it must be quick.
pub trait Observer: Send + Sync {
    /// A step is done.
    fn on_step(&self, step: &StepReport<'_>);
    /// A mixture is set.
    fn on_mixture(&self, line: &MixtureLine);
    /// Something happened.
    fn on_event(&self, event: &EventLine);
    /// A long phase is so far; told before each batch of an evaluation.
    fn on_progress(&self, progress: &Progress);
}

/// A step, for who watches.
#[derive(Debug)]
pub struct StepReport<'a> {
    /// Its line in `run.jsonl`.
    pub line: &'a StepRecord,
    /// The step at which the run ends, where it has one.
    pub limit: Option<u64>,
    /// Weight of each domain, by name.
    pub weights: Vec<(&'a str, f64)>,
    /// Sums so far.
    pub totals: &'a Totals,
}

/// Builds a teacher for a worker, on the worker's thread; again after a failure.
pub type TeacherFactory<T> = Arc<dyn Fn(usize) -> Result<T, PortError> + Send + Sync>;
/// Builds the student, on its thread.
pub type StudentFactory<S> = Box<dyn FnOnce() -> Result<S, PortError> + Send>;
/// Opens a domain's rows at a cursor; again after a failure.
pub type RowsFactory = Arc<dyn Fn(usize, Cursor) -> Result<Box<dyn Rows>, PortError> + Send + Sync>;

/// Called by the batcher before it draws a step's rows, with the step; for faults on purpose.
pub type BatcherHook = Arc<dyn Fn(u64) -> Result<(), PortError> + Send + Sync>;

/// All that a run is put together from.
pub struct Parts<T, S> {
    /// Builds teachers.
    pub teacher: TeacherFactory<T>,
    /// Builds the student, restored if the run resumes.
    pub student: StudentFactory<S>,
    /// Opens domains.
    pub rows: RowsFactory,
    /// See [`BatcherHook`].
    pub batcher: BatcherHook,
    /// Where checkpoints go.
    pub checkpoints: CheckpointStore,
    /// Where lines go.
    pub journal: Arc<Journal>,
    /// What was changed since the start.
    pub overrides: Arc<Overrides>,
    /// Where workers say what they do.
    pub board: Arc<Board>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
}
