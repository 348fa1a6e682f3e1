//! The student's lane: takes the steps, writes their lines, tells how an interval ended, hands snapshots on.

mod core;

use std::{
    cell::Cell,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, select_biased};
use ddk_mixture::Needs;
use ddk_run::{Journal, records::StopReason};
use ddk_telemetry::{Board, Queues, Worker, metrics};
use ractor::ActorRef;

pub(crate) use self::core::Core;
use crate::{
    End, Labelled, LoopState, Observer, Outcome, PortError, RunPlan, Student,
    checkpointer::SaveRequest,
    messages::StudentControl,
    ports::StudentFactory,
    teacher::{BusySum, Evaluate, EvaluatedCopy},
    weight_scheduler::{IntervalEnd, WeightSchedulerMessage},
    worker::{Body, Never, Ready},
};

/// What the student's lane works with.
pub struct StudentLane<S: Student> {
    /// What is to be done.
    pub plan: Arc<RunPlan>,
    /// What the mixture's policy has to know at an interval's end.
    pub needs: Needs,
    /// Builds the student.
    pub factory: StudentFactory<S>,
    /// Labelled micro-batches, by teacher lane.
    pub input: Vec<Receiver<Labelled<S::Signal>>>,
    /// What it is told.
    pub control: Receiver<StudentControl>,
    /// Copies of it that lane 0 of the teacher evaluates, where mixtures lag; never more than one is on its way.
    pub copies: Sender<Evaluate<S::Weights>>,
    /// What they came to.
    pub evaluated: Receiver<EvaluatedCopy>,
    /// Who takes its perplexities.
    pub scheduler: ActorRef<WeightSchedulerMessage>,
    /// Who writes its snapshots.
    pub saves: Sender<SaveRequest>,
    /// Where lines go.
    pub journal: Arc<Journal>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// The teachers' busy time, for the totals.
    pub teacher_busy: Arc<BusySum>,
    /// The teacher's perplexities, known before the first interval.
    pub teacher_perplexities: Arc<OnceLock<Vec<f64>>>,
    /// When the first micro-batch was sent.
    pub first_sent: Arc<OnceLock<Instant>>,
    /// Where the run goes on.
    pub resume: Option<LoopState>,
    /// Where the result goes.
    pub outcome: Arc<Mutex<Option<Outcome>>>,
    /// Closed when the run has failed elsewhere.
    pub stop: Receiver<Never>,
    /// Counts what goes in and out.
    pub queues: Queues,
    /// Its line on the board.
    pub status: Worker,
    /// Where it says that training begins.
    pub board: Arc<Board>,
}

/// What it has been told and has still to do.
#[derive(Debug, Default)]
struct Told {
    stop: bool,
    finish: Option<(StopReason, u64)>,
}

/// What comes next.
enum Next<Signal> {
    Batch(Box<Labelled<Signal>>),
    Control(StudentControl),
    Closed,
}

impl<S: Student + 'static> StudentLane<S> {
    /// The worker's thread.
    pub fn body(self) -> Body {
        Box::new(move |ready| self.work(ready))
    }

    fn work(mut self, ready: Ready) -> Result<(), PortError> {
        self.status.computing();
        let factory = std::mem::replace(
            &mut self.factory,
            Box::new(|| Err(PortError::Other("built twice".to_owned()))),
        );
        let student = factory()?;
        // Before its first evaluation: from here on, a stop lets the student save.
        self.board.set_ready(true);
        ready.say();
        let mut core = Core::new(&self, student);
        let end = self.train(&mut core)?;
        self.status.computing();
        if let Some(end) = end {
            if !core.is_whole() && !self.settle(&mut core, &mut Told::default())? {
                return Ok(());
            }
            self.save_last(&mut core)?;
            let after = match end {
                End::Finished(_) => {
                    // Whatever ended it: nothing is missing any more.
                    metrics::STEP_LIMIT.with(&[]).set(core.step() as f64);
                    core.evaluate_last(&self.status, &self.told_to_stop(true))?
                }
                End::Stopped => None,
            };
            // All steps are saved: the run is summed up when it is started again.
            let end = match after {
                Some(_) => end,
                None => End::Stopped,
            };
            *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = core.outcome(end, after);
        }
        self.status.stopped();
        Ok(())
    }

    /// Steps until the run's end; `None` where it is abandoned.
    fn train(&self, core: &mut Core<S>) -> Result<Option<End>, PortError> {
        // A run that was finished, but not yet summed up, when it was interrupted.
        if let Some(reason) = core.limit_reached() {
            return Ok(Some(End::Finished(reason)));
        }
        if core.needs_mixture() && !self.end_interval(core)? {
            return Ok(Some(End::Stopped));
        }
        let mut told = Told::default();
        loop {
            if told.stop && !core.within_step() {
                return Ok(Some(End::Stopped));
            }
            self.status.waiting_for_input();
            let began = Instant::now();
            match self.next(core.next_sequence) {
                Next::Batch(labelled) => {
                    self.queues.labelled.received();
                    self.status.computing();
                    if !core.take(*labelled, began)? {
                        continue;
                    }
                }
                Next::Control(StudentControl::Finish(reason, after)) if core.step() >= after => {
                    return Ok(Some(End::Finished(reason)));
                }
                Next::Control(StudentControl::Finish(reason, after)) => {
                    told.finish = Some((reason, after));
                    continue;
                }
                Next::Control(StudentControl::Stop) => {
                    told.stop = true;
                    continue;
                }
                Next::Control(StudentControl::Abandon) => {
                    if let Ok(copy) = self.evaluated.try_recv() {
                        core.evaluated(copy);
                    }
                    // Without the evaluation that the interval began with, the checkpoint before is what the
                    // run goes on from.
                    if core.is_whole() {
                        self.save_last(core)?;
                    }
                    return Ok(None);
                }
                Next::Closed => return Ok(None),
            }
            if let Some(reason) = core.limit_reached() {
                return Ok(Some(End::Finished(reason)));
            }
            if told.stop {
                return Ok(Some(End::Stopped));
            }
            if core.save_is_due() {
                if !core.is_whole() && !self.settle(core, &mut told)? {
                    return Ok(None);
                }
                self.save(core)?;
            }
            if !core.needs_mixture() {
                continue;
            }
            if !self.settle(core, &mut told)? {
                return Ok(None);
            }
            if let Some((reason, after)) = told.finish
                && core.step() >= after
            {
                return Ok(Some(End::Finished(reason)));
            }
            if !self.end_interval(core)? {
                return Ok(Some(End::Stopped));
            }
        }
    }

    /// Waits for the evaluation that the interval began with, where one is on its way; false where the run is
    /// abandoned.
    fn settle(&self, core: &mut Core<S>, told: &mut Told) -> Result<bool, PortError> {
        while core.awaits_evaluation() {
            self.status.waiting_for_input();
            select_biased! {
                recv(self.stop) -> _ => return Ok(false),
                recv(self.evaluated) -> copy => match copy {
                    Ok(copy) => core.evaluated(copy),
                    Err(_) => return Ok(false),
                },
                recv(self.control) -> message => match message {
                    Ok(StudentControl::Stop) => told.stop = true,
                    Ok(StudentControl::Finish(reason, after)) => told.finish = Some((reason, after)),
                    Ok(StudentControl::Abandon) | Err(_) => return Ok(false),
                },
            }
        }
        self.status.computing();
        Ok(true)
    }

    fn next(&self, sequence: u64) -> Next<S::Signal> {
        let lane = (sequence % self.input.len() as u64) as usize;
        select_biased! {
            recv(self.stop) -> _ => Next::Closed,
            recv(self.control) -> message => message.map_or(Next::Closed, Next::Control),
            recv(self.input[lane]) -> labelled => match labelled {
                Ok(labelled) => Next::Batch(Box::new(labelled)),
                Err(_) => Next::Closed,
            },
        }
    }

    /// Tells what the next mixture follows from, perplexities where they are due; false where the run is told
    /// to stop meanwhile.
    fn end_interval(&self, core: &mut Core<S>) -> Result<bool, PortError> {
        self.status.computing();
        if core.is_ahead() && core.evaluation_is_due() {
            // What it comes to is known when the student is another one.
            if core.is_candidate() {
                self.save(core)?;
            }
            let (step, weights) = (core.step(), core.copy()?);
            return Ok(self.copies.send(Evaluate { step, weights }).is_ok());
        }
        let perplexities = if core.evaluation_is_due() {
            match core.evaluate(&self.status, &self.told_to_stop(false))? {
                None => return Ok(false),
                measured => measured,
            }
        } else {
            None
        };
        let intervals = if core.is_ahead() {
            1
        } else {
            core.intervals_due()
        };
        core.remember(perplexities.as_deref());
        let is_best = perplexities
            .as_ref()
            .is_some_and(|perplexities| core.measured(core.step(), perplexities));
        let ended = IntervalEnd {
            step: core.step(),
            student: perplexities,
            intervals,
            training: core.training(),
        };
        self.scheduler
            .cast(WeightSchedulerMessage::IntervalEnded(Box::new(ended)))
            .map_err(|error| {
                PortError::Other(format!("the weight scheduler has ended: {error}"))
            })?;
        if is_best {
            self.save(core)?;
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
            let is_over = matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected));
            told.set(told.get() || heard || is_over);
            told.get()
        }
    }

    /// Hands a snapshot to the checkpointer; waits only for the snapshot, and for a save that is still in flight.
    fn save(&self, core: &mut Core<S>) -> Result<(), PortError> {
        let Some(state) = core.state.clone() else {
            return Ok(());
        };
        let began = Instant::now();
        self.status.computing();
        let step = state.step;
        let files = core.student.snapshot()?;
        self.status.waiting_for_output();
        let (reply, result) = bounded(1);
        self.saves
            .send(SaveRequest {
                state,
                files,
                reply,
            })
            .map_err(|_| PortError::Other("the checkpointer has ended".to_owned()))?;
        self.queues.saves.sent();
        let stall = began.elapsed().as_secs_f64();
        metrics::STEP_SECONDS.with(&["save"]).record(stall);
        core.saved(step, result, stall);
        Ok(())
    }

    /// Waits until the last step made is saved on the disk: a run that ends must not end without it. Where
    /// the save that was made of it while training went on has failed, it is made again.
    fn save_last(&self, core: &mut Core<S>) -> Result<(), PortError> {
        self.status.waiting_for_output();
        if core.is_saved() && core.await_save().is_ok() {
            self.status.computing();
            return Ok(());
        }
        self.save(core)?;
        let saved = core.await_save().map_err(|error| {
            PortError::Other(format!(
                "the last checkpoint could not be saved (the ones before it stay): {error}"
            ))
        });
        self.status.computing();
        saved
    }
}
