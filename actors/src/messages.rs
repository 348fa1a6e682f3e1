//! What the actors tell each other.

use ddk_mixture::Perplexities;
use ddk_run::{
    Measured, Source,
    control::{self, Command},
    records::StopReason,
};
use ractor::RpcReplyPort;

use crate::Totals;

/// What the student is told; it looks whenever it waits and between two batches of an evaluation.
#[derive(Debug)]
pub enum StudentCommand {
    /// The run is done after this step, an interval's last: from the weight scheduler.
    Finish(StopReason, u64),
    /// Finish the step, save, end: from the run's actor, as all that follow.
    Stop,
    /// Another part has failed: save the last step made, end.
    Abandon,
    /// Somebody asks for something.
    Request(Request),
}

/// A command, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// Who asks.
    pub source: Source,
    /// If this is dropped, whoever asks hears that the run has ended.
    pub reply: RpcReplyPort<control::Outcome>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is done.
    Finished(StopReason),
    /// It was told to stop, and is saved.
    Stopped,
}

/// What a run came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The last step.
    pub step: u64,
    /// Intervals begun.
    pub intervals: u64,
    /// Perplexities before the first step.
    pub baseline: Perplexities,
    /// The student's after the last, where the run is done.
    pub after: Option<Vec<f64>>,
    /// Gap to the teacher at each evaluation, the last one included.
    pub measured: Vec<Measured>,
    /// Sums over the run.
    pub totals: Totals,
}
