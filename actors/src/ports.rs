//! What the actors need from outside: models, sequences and an observer. The program connects these to `ddk-engine`
//! and `ddk-corpus`; the tests connect them to fakes.

use std::{ops::RangeInclusive, sync::Arc};

use ddk_corpus::{Cursor, Sample};
use ddk_run::{
    MicroBatchSums, SnapshotFile, UpdateStats,
    records::{EventKind, EventLine, MixtureLine, StepRecord},
    texts::Text,
};
use ddk_telemetry::Meter;

use crate::{MicroBatch, Totals};

/// An error of a port, classified by its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Data cannot be read; the message names the file and the offset.
    #[error("{0}")]
    Data(String),
    /// A device ran out of memory.
    #[error("{message}")]
    OutOfMemory {
        /// The work that ran out of memory.
        during: Work,
        /// The device's message.
        message: String,
    },
    /// Training went wrong: the run must rewind to its last checkpoint and skip the data of these steps.
    #[error("steps {} to {}: {reason}", steps.start(), steps.end())]
    RollBack {
        /// The steps to skip.
        steps: RangeInclusive<u64>,
        /// What went wrong.
        reason: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A kind of model work. It determines which setting recovery changes when the work runs out of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The teacher labels a micro-batch.
    Label,
    /// The student trains on a micro-batch, updates its weights, or is copied.
    Train,
    /// A model is evaluated.
    Evaluate,
}

/// Called before each batch of an evaluation with the number of documents done and their total. Returns true to cut
/// the evaluation off.
pub type Between<'a> = &'a dyn Fn(u64, u64) -> bool;

/// The run of a teacher that waits for something outside the process, such as a server.
pub trait RunLink {
    /// Whether the run has ended, so that nothing needs the teacher any more.
    fn is_over(&self) -> bool;

    /// Records an event.
    fn note(&self, kind: EventKind, message: &str);

    /// Shows the worker as waiting for input, in a phase that lasts until the meter is dropped.
    fn waiting(&self, phase: &str, unit: &'static str) -> Meter;

    /// Shows the worker as computing again.
    fn computing(&self);
}

/// The frozen teacher. It stays on the thread that built it.
pub trait Teacher {
    /// Its output for a micro-batch.
    type TeacherOutput: Send + 'static;
    /// A copy of the student's weights.
    type Weights: Send + 'static;

    /// Labels a micro-batch. Every worker must return the same output for the same batch; `None` if the run ended
    /// first.
    ///
    /// # Errors
    /// If the device or the server fails, or if the device runs out of memory.
    fn label(
        &mut self,
        batch: &MicroBatch,
        run: &dyn RunLink,
    ) -> Result<Option<Self::TeacherOutput>, PortError>;

    /// Perplexity on each domain's validation documents; `None` if the run ended first, or if `between` cut the
    /// evaluation off.
    ///
    /// # Errors
    /// As for [`Self::label`].
    fn perplexities(
        &mut self,
        run: &dyn RunLink,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError>;

    /// Like [`Self::perplexities`], but for a student with these weights.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn perplexities_of(
        &mut self,
        weights: &Self::Weights,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError>;

    /// What the teacher writes after the run's prompts, if there are any and the run has no texts yet; `None` if the
    /// run ended first.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn texts(&mut self, _is_over: &dyn Fn() -> bool) -> Result<Option<Vec<Text>>, PortError> {
        Ok(Some(Vec::new()))
    }

    /// Like [`Self::texts`], but for the student whose copy [`Self::perplexities_of`] has just evaluated.
    ///
    /// # Errors
    /// As for [`Self::texts`].
    fn texts_of_copy(
        &mut self,
        _is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Text>>, PortError> {
        Ok(Some(Vec::new()))
    }

    /// Seconds that this worker has been busy since it was built.
    fn busy_seconds(&self) -> f64;
}

/// The student. It stays on the thread that built it.
///
/// If there are several ranks, [`Self::update`], [`Self::discard`], [`Self::snapshot`] and [`Self::perplexities`] are
/// collective: every rank calls them at the same points and in the same order, so an implementation may communicate.
/// The other methods may not: ranks call them at different times, or do not call them at all.
pub trait Student {
    /// The teacher's output for a micro-batch.
    type TeacherOutput: Send + 'static;
    /// A copy of its weights.
    type Weights: Send + 'static;

    /// Adds a micro-batch's gradients, divided by the predicted tokens of its whole step. The gradients of the step's
    /// slots are kept apart: [`MicroBatch::last_of_slot`] tells where a slot ends.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn accumulate(
        &mut self,
        batch: &MicroBatch,
        signal: Self::TeacherOutput,
    ) -> Result<MicroBatchSums, PortError>;

    /// Updates the weights in step `step`. Collective: the learning rate, the gradient norm and whether the update was
    /// skipped are the same on all ranks.
    ///
    /// # Errors
    /// If the device fails or runs out of memory, or if the run must rewind.
    fn update(&mut self, step: u64) -> Result<UpdateStats, PortError>;

    /// Drops the step's gradients. Weights and moments stay unchanged. Collective.
    ///
    /// # Errors
    /// If the device fails.
    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, PortError>;

    /// Perplexity on each domain's validation documents; `None` if `between` cut the evaluation off. Collective: all
    /// ranks return the same, and `None` if `between` cut the evaluation off on any of them.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError>;

    /// What it writes after the run's prompts, if there are any; `None` if the run ended first. Only rank 0 calls this.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn texts(&mut self, _is_over: &dyn Fn() -> bool) -> Result<Option<Vec<Text>>, PortError> {
        Ok(Some(Vec::new()))
    }

    /// A copy of its weights, to evaluate elsewhere while training continues. Only rank 0 calls this.
    ///
    /// # Errors
    /// If the device fails or runs out of memory.
    fn weights(&mut self) -> Result<Self::Weights, PortError>;

    /// A copy of everything that its next steps depend on, as checkpoint files that another thread writes.
    /// Collective. Only rank 0 writes its files: they hold the whole state, as if one rank had trained alone.
    ///
    /// # Errors
    /// If the device fails, or a tensor cannot be serialized.
    fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, PortError>;

    /// Seconds that this worker has been busy since it was built.
    fn busy_seconds(&self) -> f64;
}

/// A domain's sequences, one after another, epoch after epoch.
pub trait Rows: Send {
    /// The next sequence.
    ///
    /// # Errors
    /// If the data cannot be read or does not match its checksum.
    fn read(&mut self) -> Result<Sample, PortError>;
}

/// The other ranks of a run: processes that train one student together.
///
/// Every rank runs the same loop and calls [`Self::exchange`] at the same points of it, always on the student's thread.
/// Between these points it may call what is collective in [`Student`].
pub trait Peers: Send + Sync {
    /// This process's rank, from 0. Rank 0 writes the run's files and takes users' commands.
    fn rank(&self) -> usize;

    /// The number of ranks.
    fn size(&self) -> usize;

    /// Sends a message to every rank, and returns the messages of all ranks, in order of rank. Every rank must call it
    /// at the same points.
    ///
    /// # Errors
    /// If a rank is lost, or does not take part in time.
    fn exchange(&self, message: &[u8]) -> Result<Vec<Vec<u8>>, PortError>;
}

/// Watches a run. The run's threads call it, so it must return quickly.
pub trait Observer: Send + Sync {
    /// A step is done.
    fn on_step(&self, step: &StepReport<'_>);
    /// A mixture has been set.
    fn on_mixture(&self, line: &MixtureLine);
    /// Something happened.
    fn on_event(&self, event: &EventLine);
}

/// A step, as reported to the observer.
#[derive(Debug)]
pub struct StepReport<'a> {
    /// Its line in `run.jsonl`.
    pub line: &'a StepRecord,
    /// The step at which the run ends, if there is one.
    pub limit: Option<u64>,
    /// Weight of each domain, by name.
    pub weights: Vec<(&'a str, f64)>,
    /// Sums over the run so far.
    pub totals: &'a Totals,
}

/// Builds the teacher of a replica on its worker's thread; called again after a failure.
pub type TeacherFactory<T> = Arc<dyn Fn(usize) -> Result<T, PortError> + Send + Sync>;
/// Builds the student on its thread.
pub type StudentFactory<S> = Box<dyn FnOnce() -> Result<S, PortError> + Send>;
/// Opens a domain's sequences at a cursor; called again after a failure.
pub type RowsFactory = Arc<dyn Fn(usize, Cursor) -> Result<Box<dyn Rows>, PortError> + Send + Sync>;

/// Called with a step before the batcher draws its sequences, to inject faults.
pub type BatcherHook = Arc<dyn Fn(u64) -> Result<(), PortError> + Send + Sync>;
