//! The parts of the student's worker.

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
    /// What the mixture's policy needs at an interval's end.
    pub needs: Needs,
    /// Labeled micro-batches, by replica.
    pub input: Vec<MeteredReceiver<LabeledBatch<S::TeacherOutput>>>,
    /// Commands to the student.
    pub told: Told,
    /// Copies of the student for teacher replica 0 to evaluate if mixtures lag. At most one is pending.
    pub copies: Sender<Evaluate<S::Weights>>,
    /// Results of these evaluations.
    pub evaluated: Receiver<EvaluatedCopy>,
    /// Receives the student's perplexities.
    pub scheduler: ActorRef<MixtureMessage>,
    /// Snapshots for the checkpointer.
    pub saves: MeteredSender<SaveRequest>,
    /// Its line on the board.
    pub line: Worker,
    /// What the workers share.
    pub context: Context,
}
