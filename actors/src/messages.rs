//! Messages between the actors.

use ddk_mixture::Perplexities;
use ddk_run::{
    Measured, Source,
    control::{self, Command},
    records::StopReason,
};
use ractor::RpcReplyPort;

use crate::Totals;

/// A command to the student. The student checks for commands whenever it waits and between two batches of an
/// evaluation.
#[derive(Debug)]
pub enum StudentCommand {
    /// From the weight scheduler: the run is finished after this step, the last of an interval.
    Finish(StopReason, u64),
    /// From the run's actor, like [`Self::Abandon`] and [`Self::Request`]: finish the step, save a checkpoint and end.
    Stop,
    /// Another worker has failed: save the last completed step and end.
    Abandon,
    /// From the weight scheduler: the teacher's perplexities are known.
    TeacherEvaluated,
    /// Carry out a user's command.
    Request(Request),
}

/// A command, and where to send the answer.
#[derive(Debug)]
pub struct Request {
    /// The command.
    pub command: Command,
    /// Who sent it.
    pub source: Source,
    /// If this is dropped, the caller learns that the run has ended.
    pub reply: RpcReplyPort<control::Outcome>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It finished.
    Finished(StopReason),
    /// It was stopped, and its last step is saved.
    Stopped,
}

/// The result of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// The last step.
    pub step: u64,
    /// The number of intervals that began.
    pub intervals: u64,
    /// Perplexities before the first step.
    pub baseline: Perplexities,
    /// The student's perplexities after the last step, if the run finished.
    pub after: Option<Vec<f64>>,
    /// Gap to the teacher at each evaluation, including the last one.
    pub measured: Vec<Measured>,
    /// Sums over the run.
    pub totals: Totals,
}
