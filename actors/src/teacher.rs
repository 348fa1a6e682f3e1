//! A teacher's worker: labels micro-batches in order. If mixtures lag, replica 0 also evaluates copies of the student
//! as soon as it is asked: between two batches, or while a batch waits for room in the queue. Otherwise a student that
//! waits for the evaluation could wait forever.

use std::{sync::Arc, time::Instant};

use crossbeam::channel::{Receiver, Sender};
use ddk_run::{
    records::EventKind,
    texts::{Text, TextLine, Writer},
};
use ddk_telemetry::{Meter, Worker, metrics};
use parking_lot::Mutex;
use ractor::ActorRef;

use crate::{
    LabeledBatch, MicroBatch, Teacher,
    channel::{MeteredReceiver, MeteredSender, Received},
    interval::Evaluation,
    mixture::{IntervalEnd, MixtureMessage},
    ports::{RunLink, TeacherFactory},
    worker::{Context, Exit, Ready},
};

/// A copy of the student to evaluate.
pub struct Evaluate<Weights> {
    /// The step after which it was made.
    pub step: u64,
    /// The copy.
    pub weights: Weights,
}

/// The result of evaluating a copy, for the student.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatedCopy {
    /// The step after which the copy was made, and its perplexities.
    pub evaluation: Evaluation,
    /// Seconds that the worker was busy evaluating.
    pub busy_seconds: f64,
}

/// What a teacher's worker works with.
pub struct TeacherWorker<T: Teacher> {
    /// Index of the replica.
    pub replica: usize,
    /// Builds its teacher.
    pub factory: TeacherFactory<T>,
    /// Micro-batches of this replica.
    pub input: MeteredReceiver<Arc<MicroBatch>>,
    /// Labeled micro-batches, in the same order.
    pub out: MeteredSender<LabeledBatch<T::TeacherOutput>>,
    /// The micro-batch in hand. It outlives the thread, so a teacher restarted after a panic labels it again and keeps
    /// its place in the order.
    pub in_hand: Mutex<Option<Arc<MicroBatch>>>,
    /// Copies of the student to evaluate. Only replica 0 is asked, for one at a time.
    pub copies: Receiver<Evaluate<T::Weights>>,
    /// The copy in hand. It outlives the thread, like the micro-batch in hand.
    pub copy_in_hand: Mutex<Option<Evaluate<T::Weights>>>,
    /// Results of these evaluations.
    pub evaluated: Sender<EvaluatedCopy>,
    /// Waits for perplexities.
    pub scheduler: ActorRef<MixtureMessage>,
    /// Its line on the board.
    pub line: Worker,
    /// What the workers share.
    pub context: Context,
}

impl<T: Teacher> RunLink for TeacherWorker<T> {
    fn is_over(&self) -> bool {
        self.context.is_over()
    }

    fn note(&self, kind: EventKind, message: &str) {
        self.context.note(kind, message);
    }

    fn waiting(&self, phase: &str, unit: &'static str) -> Meter {
        self.line.waiting_for_input();
        self.line.meter(phase, unit)
    }

    fn computing(&self) {
        self.line.computing();
    }
}

impl<T: Teacher> TeacherWorker<T> {
    /// Runs the worker's thread: labels micro-batches in order. Replica 0 (of rank 0, if there are several
    /// ranks) also evaluates the teacher and copies of the student.
    ///
    /// # Errors
    /// [`Exit::Done`] when the run ends, or [`Exit::Failed`] if the teacher cannot be built or if a label or an
    /// evaluation fails.
    pub fn work(&self, ready: Ready) -> Result<(), Exit> {
        let mut teacher = (self.factory)(self.replica)?;
        ready.say();
        let facts = &self.context.facts;
        // Of several ranks, only the first measures: its student passes the result on.
        let is_first = self.replica == 0 && self.context.rank() == 0;
        // Before the perplexities and the first micro-batch, so that the student has the texts in its first step.
        if is_first && facts.teacher_wrote.get().is_none() {
            let texts = teacher.texts(&|| self.context.is_over())?;
            self.wrote(0, Writer::Teacher, texts.ok_or(Exit::Done)?);
            let _ = facts.teacher_wrote.set(());
        }
        if is_first && facts.teacher_perplexities.get().is_none() {
            let seconds = self.context.plan.teacher_evaluation_seconds;
            let between = self.between("evaluation of the teacher", seconds);
            let perplexities = teacher.perplexities(self, &between)?.ok_or(Exit::Done)?;
            let _ = facts.teacher_perplexities.set(perplexities);
            let _ = self.scheduler.cast(MixtureMessage::TeacherEvaluated);
        }
        // The copy in hand when this worker failed.
        let copy = self.copy_in_hand.lock().take();
        if let Some(copy) = copy {
            self.evaluate_copy(&mut teacher, copy)?;
        }
        let mut unfinished = self.in_hand.lock().clone();
        let tokens = metrics::MODEL_TOKENS.with(&["teacher"]);
        loop {
            let (batch, data_wait) = match unfinished.take() {
                Some(batch) => (batch, 0.0),
                None => self.next(&mut teacher)?,
            };
            let (began, busy) = (Instant::now(), teacher.busy_seconds());
            let signal = teacher.label(&batch, self)?.ok_or(Exit::Done)?;
            let teacher_seconds = began.elapsed().as_secs_f64();
            tokens.increment(batch.tokens());
            *facts.teacher_busy.lock() += teacher.busy_seconds() - busy;
            let mut labeled = LabeledBatch {
                batch,
                signal,
                data_wait,
                teacher_seconds,
            };
            while let Some((unsent, copy)) = self.out.send_or(labeled, &self.copies)? {
                self.evaluate_copy(&mut teacher, copy)?;
                labeled = unsent;
            }
            *self.in_hand.lock() = None;
        }
    }

    /// The next micro-batch and the seconds waited for its sequences. Evaluates copies while there is no batch.
    fn next(&self, teacher: &mut T) -> Result<(Arc<MicroBatch>, f64), Exit> {
        loop {
            let began = Instant::now();
            match self.input.recv_or(&self.copies)? {
                Received::Word(copy) => self.evaluate_copy(teacher, copy)?,
                Received::Item(batch) => {
                    *self.in_hand.lock() = Some(Arc::clone(&batch));
                    let waited = batch.waited_since(began);
                    return Ok((batch, waited));
                }
            }
        }
    }

    /// Evaluates a copy of the student, and sends the result to the student and the scheduler.
    fn evaluate_copy(&self, teacher: &mut T, copy: Evaluate<T::Weights>) -> Result<(), Exit> {
        let mut in_hand = self.copy_in_hand.lock();
        let copy = &*in_hand.insert(copy);
        let (step, busy) = (copy.step, teacher.busy_seconds());
        let phase = format!("evaluation of the student after step {step}");
        let between = self.between(&phase, None);
        let student = teacher.perplexities_of(&copy.weights, &between)?;
        let student = student.ok_or(Exit::Done)?;
        let texts = teacher.texts_of_copy(&|| self.context.is_over())?;
        self.wrote(step, Writer::Student, texts.ok_or(Exit::Done)?);
        let evaluation = Evaluation { step, student };
        let ended = IntervalEnd::lagged(&evaluation, evaluation.student.len());
        // The student first: its state must hold what decides a mixture before anything is drawn from that mixture.
        self.evaluated.send(EvaluatedCopy {
            evaluation,
            busy_seconds: teacher.busy_seconds() - busy,
        })?;
        // If there are several ranks, the student sends it on all of them once they know the result.
        if self.context.peers.is_none() {
            let ended = MixtureMessage::IntervalEnded(ended, None);
            self.scheduler.cast(ended).map_err(|_| Exit::Done)?;
        }
        *in_hand = None;
        Ok(())
    }

    /// Leaves what was written for the student, which records it.
    fn wrote(&self, step: u64, model: Writer, texts: Vec<Text>) {
        if !texts.is_empty() {
            let line = TextLine { step, model, texts };
            self.context.facts.texts.lock().push(line);
        }
    }

    /// The callback between two batches of an evaluation that is expected to take `seconds`: reports progress, and cuts
    /// the evaluation off if the run has ended.
    fn between(&self, phase: &str, seconds: Option<f64>) -> impl Fn(u64, u64) -> bool {
        let meter = self.line.meter(phase, "documents").expecting(seconds);
        move |done, total| {
            meter.at(done, total);
            self.context.is_over()
        }
    }
}
