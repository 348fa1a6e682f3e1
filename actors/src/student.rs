//! The student's lane: takes the steps, writes their lines, tells how an interval ended, hands snapshots on.

mod core;
mod lane;

use std::{cell::Cell, time::Instant};

use crossbeam::channel::{TryRecvError, select_biased};
use ddk_run::records::StopReason;
use ddk_telemetry::metrics;

use self::core::Core;
pub use self::lane::StudentLane;
use crate::{
    End, LoopState, PortError, Student,
    channel::Received,
    messages::StudentControl,
    ports::StudentFactory,
    teacher::Evaluate,
    weight_scheduler::{IntervalEnd, WeightSchedulerMessage},
    worker::{Exit, Ready},
};

/// What it has been told and has still to do.
#[derive(Debug, Default)]
struct Told {
    stop: bool,
    finish: Option<(StopReason, u64)>,
}

impl Told {
    /// Remembers a word; an error where the run is abandoned.
    fn hear(&mut self, word: StudentControl) -> Result<(), Exit> {
        match word {
            StudentControl::Stop => self.stop = true,
            StudentControl::Finish(reason, after) => self.finish = Some((reason, after)),
            StudentControl::Abandon => return Err(Exit::Done),
        }
        Ok(())
    }

    /// Whether the run is done after `step`.
    fn finished(&self, step: u64) -> Option<End> {
        let (reason, _) = self.finish.filter(|(_, after)| step >= *after)?;
        Some(End::Finished(reason))
    }
}

impl<S: Student> StudentLane<S> {
    /// The worker's thread.
    pub fn work(
        self,
        factory: StudentFactory<S>,
        state: LoopState,
        ready: Ready,
    ) -> Result<(), Exit> {
        let student = factory()?;
        // Before its first evaluation: from here on, a stop lets the student save.
        self.context.board.set_ready(true);
        ready.say();
        let mut core = Core::new(&self, student, state);
        let end = self.train(&mut core)?;
        if !core.is_whole() {
            self.settle(&mut core, &mut Told::default())?;
        }
        core.save_last()?;
        let after = match end {
            End::Finished(_) => {
                // Whatever ended it: nothing is missing any more.
                metrics::STEP_LIMIT.with(&[]).set(core.step() as f64);
                core.evaluate_last()?
            }
            End::Stopped => None,
        };
        // All steps are saved: the run is summed up when it is started again.
        let end = if after.is_some() { end } else { End::Stopped };
        *self.context.facts.outcome.lock() = core.outcome(end, after);
        Ok(())
    }

    /// Steps until the run's end; an error where it is abandoned.
    fn train(&self, core: &mut Core<'_, S>) -> Result<End, Exit> {
        // A run that was finished, but not yet summed up, when it was interrupted.
        if let Some(reason) = core.limit_reached() {
            return Ok(End::Finished(reason));
        }
        if core.state.at_interval_end() && !self.end_interval(core)? {
            return Ok(End::Stopped);
        }
        let mut told = Told::default();
        loop {
            if told.stop && !core.within_step() {
                return Ok(End::Stopped);
            }
            let began = Instant::now();
            let lane = (core.next_sequence % self.input.len() as u64) as usize;
            match self.input[lane].recv_or(&self.control)? {
                Received::Item(labelled) => {
                    if !core.take(labelled, began)? {
                        continue;
                    }
                }
                Received::Word(StudentControl::Abandon) => {
                    if let Ok(copy) = self.evaluated.try_recv() {
                        core.evaluated(copy);
                    }
                    // Without the evaluation that the interval began with, the checkpoint before is what the
                    // run goes on from.
                    if core.is_whole() {
                        core.save_last()?;
                    }
                    return Err(Exit::Done);
                }
                Received::Word(word) => {
                    told.hear(word)?;
                    match told.finished(core.step()) {
                        Some(end) => return Ok(end),
                        None => continue,
                    }
                }
            }
            if let Some(reason) = core.limit_reached() {
                return Ok(End::Finished(reason));
            }
            if told.stop {
                return Ok(End::Stopped);
            }
            if core.save_is_due() {
                if !core.is_whole() {
                    self.settle(core, &mut told)?;
                }
                core.save()?;
            }
            if !core.state.at_interval_end() {
                continue;
            }
            self.settle(core, &mut told)?;
            if let Some(end) = told.finished(core.step()) {
                return Ok(end);
            }
            if !self.end_interval(core)? {
                return Ok(End::Stopped);
            }
        }
    }

    /// Waits for the evaluation that the interval began with, where one is on its way; an error where the run is
    /// abandoned.
    fn settle(&self, core: &mut Core<'_, S>, told: &mut Told) -> Result<(), Exit> {
        while core.awaits_evaluation() {
            self.line.waiting_for_input();
            select_biased! {
                recv(self.context.stop) -> _ => return Err(Exit::Done),
                recv(self.evaluated) -> copy => core.evaluated(copy?),
                recv(self.control) -> word => told.hear(word?)?,
            }
        }
        self.line.computing();
        Ok(())
    }

    /// Tells what the next mixture follows from, perplexities where they are due; false where the run is told
    /// to stop meanwhile.
    fn end_interval(&self, core: &mut Core<'_, S>) -> Result<bool, Exit> {
        if core.is_ahead() && core.evaluation_is_due() {
            // What it comes to is known when the student is another one.
            if core.is_candidate() {
                core.save()?;
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
        let ended = WeightSchedulerMessage::IntervalEnded(ended);
        self.scheduler.cast(ended).map_err(|error| {
            PortError::Other(format!("the weight scheduler has ended: {error}"))
        })?;
        if is_best {
            core.save()?;
        }
        Ok(true)
    }

    /// Whether the student has been told to end since this was called; asked between two batches of an
    /// evaluation. `is_last`: the run's end is no news any more.
    fn told_to_stop(&self, is_last: bool) -> impl Fn() -> bool {
        let told = Cell::new(false);
        move || {
            let heard = match self.control.try_recv() {
                Ok(StudentControl::Finish(..)) => !is_last,
                Ok(StudentControl::Stop | StudentControl::Abandon) => true,
                Err(error) => error == TryRecvError::Disconnected,
            };
            told.set(told.get() || heard || self.context.is_over());
            told.get()
        }
    }
}
