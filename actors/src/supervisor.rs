//! The supervisor: puts the pipeline together, starts it in order, heals what can be healed, and takes it down.
//!
//! It owns both ends of every data queue and what each worker has in hand, so that a worker that is built
//! again goes on with the same queue and loses nothing. A run ends at the student: when that has ended, the
//! `stop` channel is closed, which every blocking call of every other worker also waits on.

mod pipeline;
mod restarts;

use std::{collections::HashMap, sync::Arc};

use ddk_mixture::Policy;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::mpsc;

use self::pipeline::{Built, Pipeline};
pub use self::restarts::RestartBudget;
use crate::{
    LoopState, Outcome, Parts, PortError, RunError, RunPlan, Student, Teacher,
    messages::StudentControl,
    worker::{Body, Exit, Slot, WorkerActor, WorkerId},
};

/// How the run ended; nothing before that.
type RunResult = Arc<Slot<Option<Result<Option<Outcome>, RunError>>>>;

/// Runs a distillation to its end, or until something comes over `stop`.
///
/// `resume` goes on from a checkpoint, `policy` and the student's factory from the same;
/// `teacher_perplexities`, where known, are not measured again. `None`: told to stop before the first step.
pub async fn run<T, S>(
    plan: RunPlan,
    parts: Parts<T, S>,
    policy: Box<dyn Policy>,
    resume: Option<LoopState>,
    teacher_perplexities: Option<Vec<f64>>,
    stop: &mut mpsc::Receiver<()>,
) -> Result<Option<Outcome>, RunError>
where
    T: Teacher + 'static,
    S: Student<Signal = T::Signal, Weights = T::Weights> + 'static,
{
    let built = pipeline::build(plan, parts, policy, resume, teacher_perplexities).await?;
    let result = RunResult::default();
    let arguments = (built, Arc::clone(&result));
    let started = Actor::spawn(None, Supervisor, arguments).await;
    let (supervisor, mut task) = started.map_err(|error| match cause(error).downcast() {
        Ok(error) => *error,
        Err(error) => RunError::Lost(error.to_string()),
    })?;
    loop {
        tokio::select! {
            _ = &mut task => break,
            Some(()) = stop.recv() => {
                // Where it cannot be told any more, it is ending.
                let _ = supervisor.cast(SupervisorMessage::Stop);
            }
        }
    }
    let ended = result.lock().take();
    ended.unwrap_or_else(|| Err(RunError::Lost("the supervisor ended".to_owned())))
}

/// What an actor's start has failed with.
fn cause(error: SpawnErr) -> ActorProcessingErr {
    match error {
        SpawnErr::StartupFailed(cause) => cause,
        other => other.into(),
    }
}

/// What the supervisor is told.
#[derive(Debug)]
enum SupervisorMessage {
    /// Finish the step, save, end.
    Stop,
    /// A worker's time to be restarted has come.
    Restart(WorkerId),
}

/// The actor.
struct Supervisor;

struct State {
    pipeline: Pipeline,
    alive: HashMap<ActorId, (WorkerId, ActorCell)>,
    restarts: RestartBudget,
    failure: Option<RunError>,
    result: RunResult,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = State;
    type Arguments = (Built, RunResult);

    /// Starts every worker. Where one cannot be started, dropping the pipeline ends those that were.
    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (built, result): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        built.scheduler.link(myself.get_cell());
        let id = built.scheduler.get_id();
        let mut state = State {
            pipeline: built.pipeline,
            alive: HashMap::from([(id, (WorkerId::WeightScheduler, built.scheduler))]),
            restarts: RestartBudget::default(),
            failure: None,
            result,
        };
        for (worker, body) in built.workers {
            if let Err(cause) = state.spawn(worker.clone(), body, &myself).await {
                let cause = cause.to_string();
                return Err(RunError::Start { worker, cause }.into());
            }
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Stop => drop(state.pipeline.tell(StudentControl::Stop)),
            SupervisorMessage::Restart(worker) => state.restart(worker, &myself).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let (cell, exit) = match event {
            SupervisionEvent::ActorTerminated(cell, ..) => (cell, Exit::Done),
            SupervisionEvent::ActorFailed(cell, error) => (cell, Exit::of(error)),
            _ => return Ok(()),
        };
        if let Some((worker, _)) = state.alive.remove(&cell.get_id()) {
            state.ended(worker, exit, &myself);
        }
        let mut alive = state.alive.values();
        if alive.all(|(worker, _)| *worker == WorkerId::WeightScheduler) {
            state.finish();
            myself.stop(None);
        }
        Ok(())
    }
}

impl State {
    /// Starts a worker below the supervisor and waits until it is ready.
    async fn spawn(
        &mut self,
        worker: WorkerId,
        body: Body,
        myself: &ActorRef<SupervisorMessage>,
    ) -> Result<(), Exit> {
        let arguments = (self.pipeline.context.line(&worker), body);
        let started = Actor::spawn_linked(None, WorkerActor, arguments, myself.get_cell()).await;
        let (actor, _) = started.map_err(|error| Exit::of(cause(error)))?;
        let cell = actor.get_cell();
        self.alive.insert(cell.get_id(), (worker, cell));
        Ok(())
    }

    /// Decides what follows when a worker has ended.
    fn ended(&mut self, worker: WorkerId, exit: Exit, myself: &ActorRef<SupervisorMessage>) {
        match (worker, exit) {
            // The student's end is the run's, however it came.
            (WorkerId::Student, exit) => {
                if exit != Exit::Done {
                    self.fail(WorkerId::Student, exit);
                }
                self.pipeline.stop = None;
            }
            (_, Exit::Done) => {}
            (worker, exit) if self.pipeline.stop.is_some() && may_restart(&worker, &exit) => {
                let Some(delay) = self.restarts.allow(&worker) else {
                    return self.give_up(worker, exit);
                };
                self.pipeline.restarted(&worker, &exit);
                myself.send_after(delay, move || SupervisorMessage::Restart(worker));
            }
            (worker, exit) => self.give_up(worker, exit),
        }
    }

    /// Restarts a worker, unless the run is ending.
    async fn restart(&mut self, worker: WorkerId, myself: &ActorRef<SupervisorMessage>) {
        if self.pipeline.stop.is_none() {
            return;
        }
        let body = self.pipeline.body(&worker);
        if let Err(cause) = self.spawn(worker.clone(), body, myself).await {
            self.ended(worker, cause, myself);
        }
    }

    /// A worker cannot be restarted: the student saves the last step made, then the run ends.
    fn give_up(&mut self, worker: WorkerId, cause: Exit) {
        self.fail(worker, cause);
        let told = self.pipeline.tell(StudentControl::Abandon).is_ok();
        let mut alive = self.alive.values();
        let student_lives = alive.any(|(worker, _)| *worker == WorkerId::Student);
        if !told || !student_lives {
            self.pipeline.stop = None;
        }
    }

    /// The first failure is the one that is reported.
    fn fail(&mut self, worker: WorkerId, cause: Exit) {
        tracing::error!(part = %worker, %cause, "a part of the run failed");
        self.failure
            .get_or_insert(RunError::Worker { worker, cause });
    }

    /// All workers have ended.
    fn finish(&mut self) {
        self.pipeline.context.board.set_ready(false);
        for (_, cell) in self.alive.values() {
            cell.stop(None);
        }
        *self.result.lock() = Some(match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(self.pipeline.context.facts.outcome.lock().take()),
        });
    }
}

/// Whether a worker is restarted and repeats what it had in hand: one that changes nothing and panicked, and a
/// loader whose file could not be read, which may pass.
fn may_restart(worker: &WorkerId, exit: &Exit) -> bool {
    match worker {
        WorkerId::Loader(_) => {
            matches!(exit, Exit::Panicked(_) | Exit::Failed(PortError::Data(_)))
        }
        WorkerId::Teacher(_) => matches!(exit, Exit::Panicked(_)),
        _ => false,
    }
}
