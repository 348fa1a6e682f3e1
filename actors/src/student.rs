//! The student's worker: trains, records the steps, reports the end of each interval, and sends snapshots.

mod commands;
mod step_loop;
mod together;
mod told;

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, at, never};
use ddk_telemetry::{Worker, metrics};
use ractor::ActorRef;

use self::step_loop::{StepLoop, Taken};
pub use self::told::{Due, Told};
use crate::{
    End, LabeledBatch, LoopState, Student,
    channel::{MeteredReceiver, MeteredSender, Received},
    checkpointer::SaveRequest,
    messages::StudentCommand,
    mixture::{IntervalEnd, MixtureMessage},
    ports::StudentFactory,
    teacher::{Evaluate, EvaluatedCopy},
    worker::{Context, Exit, Ready},
};

/// What the student's worker works with.
pub struct StudentWorker<S: Student> {
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

impl<S: Student> StudentWorker<S> {
    /// Runs the worker's thread: trains until the run finishes or stops, then waits for the last checkpoint.
    ///
    /// # Errors
    /// [`Exit::Done`] if the run is abandoned, or [`Exit::Failed`] if the student cannot be built or if a step, an
    /// evaluation, or the last checkpoint fails.
    pub fn work(
        self,
        factory: StudentFactory<S>,
        state: LoopState,
        ready: Ready,
    ) -> Result<(), Exit> {
        let student = factory()?;
        // Ready before the first evaluation: from here on, a stop lets the student save.
        self.context.board.set_ready(true);
        ready.say();
        let mut step_loop = StepLoop::new(&self, student, state);
        self.meet(&mut step_loop)?;
        let end = self.train(&mut step_loop)?;
        if self.fails_together() {
            return Err(Exit::Done);
        }
        self.settle(&mut step_loop)?;
        step_loop.save_last()?;
        let after = match end {
            End::Finished(_) => {
                // Whatever ended the run, no steps are left.
                metrics::MAX_STEPS.with(&[]).set(step_loop.step() as f64);
                step_loop.evaluate_last()?
            }
            End::Stopped => None,
        };
        // If the last evaluation was cut off, the run counts as stopped. All steps are saved, and the next start
        // repeats the evaluation.
        let end = if after.is_some() { end } else { End::Stopped };
        *self.context.facts.outcome.lock() = step_loop.outcome(end, after);
        Ok(())
    }

    /// Trains until the run ends. Returns an error if the run is abandoned.
    fn train(&self, step_loop: &mut StepLoop<'_, S>) -> Result<End, Exit> {
        // The run was interrupted after its last step, before its last evaluation.
        if let Some(reason) = step_loop.limit_reached() {
            return Ok(End::Finished(reason));
        }
        if step_loop.state.at_interval_end() && !self.end_interval(step_loop)? {
            return Ok(End::Stopped);
        }
        let told = &self.told;
        loop {
            if told.stop.get().is_some() && !step_loop.within_step() {
                return Ok(End::Stopped);
            }
            // Both may have been heard when the interval ended.
            if told.abandon.get() {
                return Err(self.abandoned(step_loop)?);
            }
            if !step_loop.within_step()
                && let Some(end) = told.finished(step_loop.step())
            {
                return Ok(end);
            }
            let began = Instant::now();
            let replica = (step_loop.next_sequence % self.input.len() as u64) as usize;
            let (input, deadline) = (&self.input[replica], self.deadline());
            let taken = match input.recv_or_until(&told.commands.end, &deadline)? {
                Some(Received::Item(labeled)) => step_loop.take(labeled, began)?,
                Some(Received::Word(command)) => {
                    told.hear(command);
                    Taken::Part
                }
                None => step_loop.give_up()?,
            };
            if let Some(copy) = step_loop.arrived.take() {
                self.copy_evaluated(step_loop, copy)?;
            }
            if taken == Taken::GaveUp {
                // The step before this one is saved.
                return Ok(End::Stopped);
            }
            let is_step_done = taken == Taken::Step;
            if is_step_done {
                self.repeat_changes(step_loop.step() + 1)?;
            }
            // Several ranks know of the same requests only right after a step.
            if is_step_done || (!step_loop.within_step() && self.context.peers.is_none()) {
                self.obey(step_loop)?;
            }
            if told.abandon.get() {
                return Err(self.abandoned(step_loop)?);
            }
            if !is_step_done {
                match told.finished(step_loop.step()) {
                    Some(end) => return Ok(end),
                    None => continue,
                }
            }
            if let Some(reason) = step_loop.limit_reached() {
                return Ok(End::Finished(reason));
            }
            if told.stop.get().is_some() {
                return Ok(End::Stopped);
            }
            if step_loop.save_is_due() {
                self.settle(step_loop)?;
                step_loop.save(None)?;
            }
            if !step_loop.state.at_interval_end() {
                continue;
            }
            self.settle_ahead(step_loop)?;
            if let Some(end) = told.finished(step_loop.step()) {
                return Ok(end);
            }
            if !self.end_interval(step_loop)? {
                return Ok(End::Stopped);
            }
        }
    }

    /// Until when a stopped run waits for the rest of its step: for half of the grace period, so that the other half is
    /// left to save. A teacher's server may be away for longer. Of several ranks, each keeps its own deadline, and
    /// they give the step up together.
    fn deadline(&self) -> Receiver<Instant> {
        let grace = self.context.plan.recovery.shutdown_grace_seconds / 2.0;
        let stop = self.told.stopped_since();
        stop.map_or_else(never, |stop| at(stop + Duration::from_secs_f64(grace)))
    }

    /// Whether another worker of this process has failed, and the student must not save the last step, because the
    /// other ranks do not take part: they learn of the failure when this process ends.
    fn fails_together(&self) -> bool {
        self.context.peers.is_some() && self.told.abandon.get()
    }

    /// Ends the run after another worker has failed.
    fn abandoned(&self, step_loop: &mut StepLoop<'_, S>) -> Result<Exit, Exit> {
        if self.fails_together() {
            return Ok(Exit::Done);
        }
        if let Ok(copy) = self.evaluated.try_recv() {
            step_loop.evaluated(copy)?;
        }
        // Without the evaluation that the interval began with, the run has to resume from the checkpoint before.
        if step_loop.is_whole() {
            step_loop.save_last()?;
        }
        Ok(Exit::Done)
    }

    /// Waits until the state of the last step is complete.
    fn settle(&self, step_loop: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        if step_loop.is_whole() {
            return Ok(());
        }
        self.settle_ahead(step_loop)
    }

    /// Waits for the evaluation that the interval began with, if it is pending. Returns an error if the run is
    /// abandoned.
    fn settle_ahead(&self, step_loop: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        if step_loop.awaits_evaluation() && self.context.peers.is_some() {
            return self.await_copy(step_loop);
        }
        while step_loop.awaits_evaluation() {
            match self.told.commands.recv_or(&self.evaluated)? {
                Received::Word(copy) => step_loop.evaluated(copy)?,
                Received::Item(StudentCommand::Abandon) => return Err(Exit::Done),
                Received::Item(command) => self.told.hear(command),
            }
        }
        Ok(())
    }

    /// Sends what decides the next mixture, with perplexities if they are due. Returns false if the run is told to
    /// stop meanwhile.
    fn end_interval(&self, step_loop: &mut StepLoop<'_, S>) -> Result<bool, Exit> {
        if step_loop.is_ahead() && step_loop.evaluation_is_due() {
            // When the result arrives, the student will have changed, so save it now.
            if step_loop.is_candidate() {
                step_loop.save(None)?;
            }
            let (step, weights) = (step_loop.step(), step_loop.copy()?);
            let evaluate = |weights| self.copies.send(Evaluate { step, weights }).is_ok();
            return Ok(weights.is_none_or(evaluate));
        }
        let is_due = step_loop.evaluation_is_due();
        let perplexities = if is_due { step_loop.evaluate()? } else { None };
        if is_due && perplexities.is_none() {
            return Ok(false);
        }
        if !self.await_teacher(step_loop)? {
            return Ok(false);
        }
        let lag = self.context.plan.lag;
        let intervals = if step_loop.is_ahead() { 1 } else { 1 + lag };
        step_loop.remember(perplexities.as_deref());
        let is_best = perplexities
            .as_ref()
            .is_some_and(|perplexities| step_loop.measured(step_loop.step(), perplexities));
        let ended = IntervalEnd {
            step: step_loop.step(),
            student: perplexities,
            intervals,
            training: step_loop.state.interval_losses.clone(),
        };
        self.decide(ended)?;
        if is_best {
            step_loop.save(None)?;
        }
        Ok(true)
    }

    /// Whether the student has been told to end; checked between two batches of an evaluation.
    fn is_told_to_end(&self) -> bool {
        self.told.hear_all();
        self.told.is_cut_off() || self.context.is_over()
    }
}
