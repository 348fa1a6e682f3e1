//! The student's worker: trains, records the steps, reports the end of each interval, and sends snapshots.

mod commands;
mod step_loop;
mod told;
mod worker;

use std::time::Instant;

use crossbeam::channel::select_biased;
use ddk_telemetry::metrics;

use self::step_loop::StepLoop;
pub use self::{told::Told, worker::StudentWorker};
use crate::{
    End, LoopState, PortError, Student,
    channel::Received,
    messages::StudentCommand,
    mixture::{IntervalEnd, MixtureMessage},
    ports::StudentFactory,
    teacher::Evaluate,
    worker::{Exit, Ready},
};

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
        let mut core = StepLoop::new(&self, student, state);
        let end = self.train(&mut core)?;
        self.settle(&mut core)?;
        core.save_last()?;
        let after = match end {
            End::Finished(_) => {
                // Whatever ended the run, no steps are left.
                metrics::MAX_STEPS.with(&[]).set(core.step() as f64);
                core.evaluate_last()?
            }
            End::Stopped => None,
        };
        // If the last evaluation was cut off, the run counts as stopped. All steps are saved, and the next start
        // repeats the evaluation.
        let end = if after.is_some() { end } else { End::Stopped };
        *self.context.facts.outcome.lock() = core.outcome(end, after);
        Ok(())
    }

    /// Trains until the run ends. Returns an error if the run is abandoned.
    fn train(&self, core: &mut StepLoop<'_, S>) -> Result<End, Exit> {
        // The run was interrupted after its last step, before its last evaluation.
        if let Some(reason) = core.limit_reached() {
            return Ok(End::Finished(reason));
        }
        if core.state.at_interval_end() && !self.end_interval(core)? {
            return Ok(End::Stopped);
        }
        let told = &self.told;
        loop {
            if told.stop.get() && !core.within_step() {
                return Ok(End::Stopped);
            }
            let began = Instant::now();
            let replica = (core.next_sequence % self.input.len() as u64) as usize;
            match self.input[replica].recv_or(&told.commands)? {
                Received::Item(labeled) => {
                    if !core.take(labeled, began)? {
                        continue;
                    }
                }
                Received::Word(command) => {
                    told.hear(command);
                    if !told.abandon.get() && !core.within_step() {
                        self.obey(core)?;
                    }
                    if told.abandon.get() {
                        return Err(self.abandoned(core)?);
                    }
                    match told.finished(core.step()) {
                        Some(end) => return Ok(end),
                        None => continue,
                    }
                }
            }
            self.repeat_changes(core.step() + 1)?;
            self.obey(core)?;
            if told.abandon.get() {
                return Err(self.abandoned(core)?);
            }
            if let Some(reason) = core.limit_reached() {
                return Ok(End::Finished(reason));
            }
            if told.stop.get() {
                return Ok(End::Stopped);
            }
            if core.save_is_due() {
                self.settle(core)?;
                core.save(None)?;
            }
            if !core.state.at_interval_end() {
                continue;
            }
            self.settle_ahead(core)?;
            if let Some(end) = told.finished(core.step()) {
                return Ok(end);
            }
            if !self.end_interval(core)? {
                return Ok(End::Stopped);
            }
        }
    }

    /// Ends the run after another worker has failed.
    fn abandoned(&self, core: &mut StepLoop<'_, S>) -> Result<Exit, Exit> {
        if let Ok(copy) = self.evaluated.try_recv() {
            core.evaluated(copy);
        }
        // Without the evaluation that the interval began with, the run has to resume from the checkpoint before.
        if core.is_whole() {
            core.save_last()?;
        }
        Ok(Exit::Done)
    }

    /// Waits until the state of the last step is complete.
    fn settle(&self, core: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        if core.is_whole() {
            return Ok(());
        }
        self.settle_ahead(core)
    }

    /// Waits for the evaluation that the interval began with, if it is pending. Returns an error if the run is
    /// abandoned.
    fn settle_ahead(&self, core: &mut StepLoop<'_, S>) -> Result<(), Exit> {
        while core.awaits_evaluation() {
            self.line.waiting_for_input();
            select_biased! {
                recv(self.context.stop) -> _ => return Err(Exit::Done),
                recv(self.evaluated) -> copy => core.evaluated(copy?),
                recv(self.told.commands) -> command => match command? {
                    StudentCommand::Abandon => return Err(Exit::Done),
                    command => self.told.hear(command),
                },
            }
        }
        self.line.computing();
        Ok(())
    }

    /// Sends what decides the next mixture, with perplexities if they are due. Returns false if the run is told to
    /// stop meanwhile.
    fn end_interval(&self, core: &mut StepLoop<'_, S>) -> Result<bool, Exit> {
        if core.is_ahead() && core.evaluation_is_due() {
            // When the result arrives, the student will have changed, so save it now.
            if core.is_candidate() {
                core.save(None)?;
            }
            let (step, weights) = (core.step(), core.copy()?);
            return Ok(self.copies.send(Evaluate { step, weights }).is_ok());
        }
        let perplexities = if core.evaluation_is_due() {
            match core.evaluate()? {
                None => return Ok(false),
                measured => measured,
            }
        } else {
            None
        };
        let lag = self.context.plan.lag;
        let intervals = if core.is_ahead() { 1 } else { 1 + lag };
        core.remember(perplexities.as_deref());
        let is_best = perplexities
            .as_ref()
            .is_some_and(|perplexities| core.measured(core.step(), perplexities));
        let ended = IntervalEnd {
            step: core.step(),
            student: perplexities,
            intervals,
            training: core.state.interval_losses.clone(),
        };
        let ended = MixtureMessage::IntervalEnded(ended);
        self.scheduler.cast(ended).map_err(|error| {
            PortError::Other(format!("the weight scheduler has ended: {error}"))
        })?;
        if is_best {
            core.save(None)?;
        }
        Ok(true)
    }

    /// Whether the student has been told to end; checked between two batches of an evaluation.
    fn is_told_to_end(&self) -> bool {
        self.told.hear_all();
        self.told.is_cut_off() || self.context.is_over()
    }
}
