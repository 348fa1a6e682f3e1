//! The supervisor: puts the pipeline together, starts it in order, heals what can be healed, and takes it down.
//!
//! It owns both ends of every data queue and what each worker has in hand, so that a worker that is built
//! again goes on with the same queue and loses nothing. A run ends at the student: when that has ended, the
//! `stop` channel is closed, which every blocking call of every other worker also waits on.

mod pipeline;
mod restarts;

use std::{collections::HashMap, marker::PhantomData};

use crossbeam::channel::Sender;
use ddk_mixture::Policy;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::{mpsc, oneshot};

use self::pipeline::Pipeline;
pub use self::restarts::RestartBudget;
use crate::{
    LoopState, Outcome, Parts, PortError, RunError, RunPlan, Student, Teacher,
    messages::StudentControl,
    worker::{Exit, Never, WorkerActor, WorkerId, WorkerSpec},
};

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
    let (result, mut is_done) = oneshot::channel();
    let arguments = Arguments {
        plan,
        parts,
        policy,
        resume,
        teacher_perplexities,
        result,
    };
    let started = Actor::spawn(None, Supervisor(PhantomData), arguments).await;
    let (supervisor, task) = started.map_err(start_error)?;
    let ended = loop {
        tokio::select! {
            ended = &mut is_done => break ended,
            Some(()) = stop.recv() => {
                // Where it cannot be told any more, it is ending.
                let _ = supervisor.cast(SupervisorMessage::Stop);
            }
        }
    };
    let _ = task.await;
    ended.unwrap_or_else(|_| Err(RunError::Lost("the supervisor ended".to_owned())))
}

fn start_error(error: SpawnErr) -> RunError {
    match error {
        SpawnErr::StartupFailed(cause) => match cause.downcast::<RunError>() {
            Ok(error) => *error,
            Err(cause) => RunError::Lost(cause.to_string()),
        },
        other => RunError::Lost(other.to_string()),
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
struct Supervisor<T, S>(PhantomData<fn() -> (T, S)>);

struct Arguments<T: Teacher, S: Student> {
    plan: RunPlan,
    parts: Parts<T, S>,
    policy: Box<dyn Policy>,
    resume: Option<LoopState>,
    teacher_perplexities: Option<Vec<f64>>,
    result: oneshot::Sender<Result<Option<Outcome>, RunError>>,
}

struct State<T: Teacher> {
    pipeline: Pipeline<T>,
    alive: HashMap<ActorId, (WorkerId, ActorCell)>,
    restarts: RestartBudget,
    /// Dropped to close the channel.
    stop: Option<Sender<Never>>,
    failure: Option<RunError>,
    result: Option<oneshot::Sender<Result<Option<Outcome>, RunError>>>,
}

impl<T, S> Actor for Supervisor<T, S>
where
    T: Teacher + 'static,
    S: Student<Signal = T::Signal, Weights = T::Weights> + 'static,
{
    type Msg = SupervisorMessage;
    type State = State<T>;
    type Arguments = Arguments<T, S>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        arguments: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let result = arguments.result;
        let started = pipeline::start(
            arguments.plan,
            arguments.parts,
            arguments.policy,
            arguments.resume,
            arguments.teacher_perplexities,
            myself.get_cell(),
        )
        .await?;
        Ok(State {
            pipeline: started.pipeline,
            alive: started.alive,
            restarts: RestartBudget::default(),
            stop: Some(started.stop),
            failure: None,
            result: Some(result),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            // A full channel holds a word that ends the run already.
            SupervisorMessage::Stop => drop(state.pipeline.control.try_send(StudentControl::Stop)),
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
            SupervisionEvent::ActorFailed(cell, error) => {
                let exit = match error.downcast::<Exit>() {
                    Ok(exit) => *exit,
                    Err(error) => Exit::Failed(PortError::Other(error.to_string())),
                };
                (cell, exit)
            }
            _ => return Ok(()),
        };
        if let Some((worker, _)) = state.alive.remove(&cell.get_id()) {
            state.ended(worker, exit, &myself);
        }
        if !state.alive.values().any(|(worker, _)| worker.has_thread()) {
            state.finish();
            myself.stop(None);
        }
        Ok(())
    }
}

impl<T: Teacher + 'static> State<T> {
    /// Decides what follows when a worker has ended.
    fn ended(&mut self, worker: WorkerId, exit: Exit, myself: &ActorRef<SupervisorMessage>) {
        match (worker, exit) {
            // The student's end is the run's, however it came.
            (WorkerId::Student, exit) => {
                if exit != Exit::Done {
                    self.fail(WorkerId::Student, exit);
                }
                self.stop = None;
            }
            (_, Exit::Done) => {}
            (worker, exit) if self.stop.is_some() && may_restart(&worker, &exit) => {
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
        if self.stop.is_none() {
            return;
        }
        match self.pipeline.restart(&worker, myself.get_cell()).await {
            Ok(cell) => drop(self.alive.insert(cell.get_id(), (worker, cell))),
            Err(cause) => self.ended(worker, cause, myself),
        }
    }

    /// A worker cannot be restarted: the student saves the last step made, then the run ends.
    fn give_up(&mut self, worker: WorkerId, cause: Exit) {
        self.fail(worker, cause);
        let told = self
            .pipeline
            .control
            .try_send(StudentControl::Abandon)
            .is_ok();
        let mut alive = self.alive.values();
        let student_lives = alive.any(|(worker, _)| *worker == WorkerId::Student);
        if !told || !student_lives {
            self.stop = None;
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
        self.pipeline.board.set_ready(false);
        for (_, cell) in self.alive.values() {
            cell.stop(None);
        }
        let result = match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(self.pipeline.take_outcome()),
        };
        if let Some(sender) = self.result.take() {
            let _ = sender.send(result);
        }
    }
}

/// Whether a worker is restarted and repeats what it had in hand: one that changes nothing and panicked, and a
/// loader whose file could not be read, which may pass.
fn may_restart(worker: &WorkerId, exit: &Exit) -> bool {
    match worker {
        WorkerId::Loader { .. } => {
            matches!(exit, Exit::Panicked(_) | Exit::Failed(PortError::Data(_)))
        }
        WorkerId::Teacher(_) => matches!(exit, Exit::Panicked(_)),
        _ => false,
    }
}

/// Starts a worker below the supervisor and waits until it is ready.
async fn spawn(
    worker: &WorkerId,
    body: crate::worker::Body,
    above: ActorCell,
) -> Result<ActorCell, Exit> {
    let spec = WorkerSpec {
        name: worker.to_string(),
        body,
    };
    match Actor::spawn_linked(None, WorkerActor, spec, above).await {
        Ok((actor, _)) => Ok(actor.get_cell()),
        Err(SpawnErr::StartupFailed(cause)) => Err(match cause.downcast::<Exit>() {
            Ok(exit) => *exit,
            Err(cause) => Exit::Failed(PortError::Other(cause.to_string())),
        }),
        Err(other) => Err(Exit::Failed(PortError::Other(other.to_string()))),
    }
}
