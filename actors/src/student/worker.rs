//! What the student's worker works with.

use crossbeam::channel::{Receiver, Sender};
use ddk_mixture::Needs;
use ddk_telemetry::Worker;
use ractor::ActorRef;

use crate::{
    LabeledBatch, Student,
    channel::{MeteredReceiver, MeteredSender},
    checkpointer::SaveRequest,
    mixture::MixtureMessage,
    student::Told,
    teacher::{Evaluate, EvaluatedCopy},
    worker::Context,
};

/// What the student's worker works with.
pub struct StudentWorker<S: Student> {
    /// What the mixture's policy has to know at an interval's end.
    pub needs: Needs,
    /// LabeledBatch micro-batches, by replica.
    pub input: Vec<MeteredReceiver<LabeledBatch<S::TeacherOutput>>>,
    /// What it is told.
    pub told: Told,
    /// Copies of it that replica 0 of the teacher evaluates, where mixtures lag; never more than one is on its way.
    pub copies: Sender<Evaluate<S::Weights>>,
    /// What they came to.
    pub evaluated: Receiver<EvaluatedCopy>,
    /// Who takes its perplexities.
    pub scheduler: ActorRef<MixtureMessage>,
    /// Who writes its snapshots.
    pub saves: MeteredSender<SaveRequest>,
    /// Its line on the board.
    pub line: Worker,
    /// What it shares with the others.
    pub context: Context,
}
