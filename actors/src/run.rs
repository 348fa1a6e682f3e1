//! The actor of a run: builds a generation of workers, supervises it, decides how to recover from failures, and passes
//! commands on to the student.
//!
//! It keeps the queue ends and the work in hand of loaders and teachers, so a restarted worker continues with the same
//! queue and loses nothing. A generation ends with its student: the `stop` channel closes, and every blocking call of
//! the other workers returns. After a rewind, the next generation starts from the last checkpoint.

use std::{collections::HashMap, sync::Arc};

use ddk_run::{
    CheckpointStore, Journal, Overrides, Source,
    control::{self, Command, Refusal, Reply},
    records::EventKind,
};
use ddk_telemetry::{Board, metrics};
use parking_lot::Mutex;
use ractor::{
    Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent, rpc::CallResult,
};
use tokio::task::JoinHandle;

use crate::{
    LoopState, Observer, Outcome, Peers, RunError, RunPlan, Student, Teacher,
    messages::{Request, StudentCommand},
    pipeline::{self, Built, Pipeline},
    ports::{BatcherHook, RowsFactory, StudentFactory, TeacherFactory},
    recovery::{Recovery, Remedy, Rewind},
    worker::{Body, Exit, WorkerActor, WorkerId},
};

/// How the run ended; none until then.
type RunResult = Arc<Mutex<Option<Result<Option<Outcome>, RunError>>>>;

/// What a generation of workers is built from.
pub struct Generation<T, S> {
    /// The run's plan.
    pub plan: RunPlan,
    /// The state at the checkpoint that the run resumes from, or before the first step.
    pub state: LoopState,
    /// The teacher's perplexities if known, so that they are not measured again.
    pub teacher_perplexities: Option<Vec<f64>>,
    /// Builds the teachers.
    pub teacher: TeacherFactory<T>,
    /// Builds the student, restored if the run resumes.
    pub student: StudentFactory<S>,
    /// Opens the domains.
    pub rows: RowsFactory,
    /// See [`BatcherHook`].
    pub batcher: BatcherHook,
    /// Where checkpoints go.
    pub checkpoints: CheckpointStore,
    /// The run's JSON Lines files.
    pub journal: Arc<Journal>,
    /// Changes since the run's start.
    pub overrides: Arc<Overrides>,
    /// Shows what each worker is doing.
    pub board: Arc<Board>,
    /// Watches the run.
    pub observer: Arc<dyn Observer>,
    /// The other ranks; `None` if this process trains alone.
    pub peers: Option<Arc<dyn Peers>>,
}

/// Starts to build a generation. May wait for a disk.
type Builder = Box<dyn Fn() -> JoinHandle<Result<Built, RunError>> + Send>;

/// A run that has been started.
pub struct Run {
    handle: RunHandle,
    task: JoinHandle<()>,
    result: RunResult,
}

/// Sends commands to a run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct RunHandle(ActorRef<RunMessage>);

impl RunHandle {
    /// Tells the run to finish the step, save a checkpoint and end.
    pub fn stop(&self) {
        // The send fails only if the run is already ending.
        let _ = self.0.cast(RunMessage::Stop);
    }

    /// Sends a command, which the run carries out at the next step boundary.
    ///
    /// # Errors
    /// If the command is refused, or if the run ends or rewinds before it could carry the command out.
    pub async fn ask(&self, command: Command, source: Source) -> control::Outcome {
        let request = |reply| {
            RunMessage::Request(Request {
                command,
                source,
                reply,
            })
        };
        match self.0.call(request, None).await {
            Ok(CallResult::Success(outcome)) => outcome,
            _ => Err(Refusal(
                "the run stopped or returned to its last checkpoint before it could do that"
                    .to_owned(),
            )),
        }
    }
}

impl Run {
    /// Starts a run. `assemble` returns its first generation, and another one after each rewind.
    ///
    /// # Errors
    /// If the actor cannot be started.
    pub async fn start<T, S>(
        assemble: impl FnMut() -> Result<Generation<T, S>, RunError> + Send + 'static,
        overrides: Arc<Overrides>,
    ) -> Result<Self, RunError>
    where
        T: Teacher + 'static,
        S: Student<TeacherOutput = T::TeacherOutput, Weights = T::Weights> + 'static,
    {
        let assemble = Arc::new(Mutex::new(assemble));
        let build: Builder = Box::new(move || {
            let assemble = Arc::clone(&assemble);
            tokio::spawn(async move {
                let assembled = tokio::task::spawn_blocking(move || (*assemble.lock())()).await;
                pipeline::build(assembled.map_err(RunError::lost)??).await
            })
        });
        let result = RunResult::default();
        let state = State {
            build,
            pipeline: None,
            alive: HashMap::new(),
            recovery: Recovery::new(overrides),
            next: None,
            is_stopped: false,
            result: Arc::clone(&result),
        };
        let started = Actor::spawn(None, RunActor, state).await;
        let (actor, task) = started.map_err(RunError::lost)?;
        Ok(Self {
            handle: RunHandle(actor),
            task,
            result,
        })
    }

    /// A handle for sending commands to the run.
    pub fn handle(&self) -> RunHandle {
        self.handle.clone()
    }

    /// Waits for the run to end. Returns `None` if it was told to stop before the first step.
    ///
    /// # Errors
    /// If a worker could not be started, or failed beyond recovery.
    pub async fn ended(self) -> Result<Option<Outcome>, RunError> {
        let _ = self.task.await;
        let ended = self.result.lock().take();
        ended.unwrap_or_else(|| Err(RunError::Lost("the run's actor ended".to_owned())))
    }
}

/// Why an actor failed to start.
fn cause(error: SpawnErr) -> ActorProcessingErr {
    match error {
        SpawnErr::StartupFailed(cause) => cause,
        other => other.into(),
    }
}

/// A message to the run's actor.
enum RunMessage {
    /// Build a generation. The actor sends this to itself at its start and after the delay of a rewind.
    Build,
    /// A generation is built, so start its workers. Sent by the task that built it.
    Built(Box<Result<Built, RunError>>),
    /// Finish the step, save a checkpoint and end. Sent by a handle.
    Stop,
    /// Carry out a user's command. Sent by a handle.
    Request(Request),
    /// Restart a worker. The actor sends this to itself after the delay.
    Restart(WorkerId),
}

/// The run's actor.
struct RunActor;

struct State {
    build: Builder,
    /// The current generation.
    pipeline: Option<Pipeline>,
    /// Its actors.
    alive: HashMap<ActorId, WorkerId>,
    recovery: Recovery,
    /// After a failure, what to do once all workers have ended: rewind, or end the run with an error.
    next: Option<Result<Box<Rewind>, RunError>>,
    is_stopped: bool,
    result: RunResult,
}

impl Actor for RunActor {
    type Msg = RunMessage;
    type State = State;
    type Arguments = State;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        state: Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        myself.cast(RunMessage::Build)?;
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RunMessage::Build => {
                let building = (state.build)();
                tokio::spawn(async move {
                    let built = building.await.map_err(RunError::lost).flatten();
                    myself.cast(RunMessage::Built(Box::new(built)))
                });
            }
            RunMessage::Built(built) => {
                let started = match *built {
                    Ok(built) => state.start(built, &myself).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = started {
                    state.end(Err(error), &myself);
                }
            }
            RunMessage::Stop => {
                state.is_stopped = true;
                state.tell(StudentCommand::Stop);
            }
            RunMessage::Request(request) => match request.command {
                Command::Stop => {
                    state.is_stopped = true;
                    state.tell(StudentCommand::Stop);
                    let _ = request.reply.send(Ok(Reply::Stop));
                }
                // The process that hosts the run answers this command itself.
                Command::Status => {
                    let refusal =
                        Refusal("the workers do not know the status of the run".to_owned());
                    let _ = request.reply.send(Err(refusal));
                }
                _ => match state.pipeline.as_ref().and_then(Pipeline::refusal) {
                    None => state.tell(StudentCommand::Request(request)),
                    Some(refusal) => drop(request.reply.send(Err(refusal))),
                },
            },
            RunMessage::Restart(worker) => state.restart(worker, &myself).await,
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
        // Actors of an earlier generation are not in `alive`.
        let Some(worker) = state.alive.remove(&cell.get_id()) else {
            return Ok(());
        };
        state.ended(worker, exit, &myself);
        let mut alive = state.alive.values();
        if alive.all(|worker| *worker == WorkerId::MixtureActor) {
            state.all_ended(&myself);
        }
        Ok(())
    }
}

impl State {
    /// Starts the workers of a generation. If one cannot be started, dropping the pipeline ends the others.
    async fn start(&mut self, built: Built, myself: &ActorRef<RunMessage>) -> Result<(), RunError> {
        let scheduler = &built.pipeline.scheduler;
        scheduler.link(myself.get_cell());
        let id = scheduler.get_id();
        self.alive.insert(id, WorkerId::MixtureActor);
        self.pipeline = Some(built.pipeline);
        for (worker, body) in built.workers {
            if let Err(cause) = self.spawn(worker.clone(), body, myself).await {
                let cause = cause.to_string();
                return Err(RunError::Start { worker, cause });
            }
        }
        if self.is_stopped {
            self.tell(StudentCommand::Stop);
        }
        Ok(())
    }

    /// Starts a worker under this actor and waits until it is ready.
    async fn spawn(
        &mut self,
        worker: WorkerId,
        body: Body,
        myself: &ActorRef<RunMessage>,
    ) -> Result<(), Exit> {
        let Some(pipeline) = &self.pipeline else {
            return Err(Exit::Done);
        };
        let arguments = (pipeline.context.line(&worker), body);
        let started = Actor::spawn_linked(None, WorkerActor, arguments, myself.get_cell()).await;
        let (actor, _) = started.map_err(|error| Exit::of(cause(error)))?;
        self.alive.insert(actor.get_id(), worker);
        Ok(())
    }

    /// Sends the student a command. If there is no student, or it has ended, dropping a request refuses it.
    fn tell(&self, command: StudentCommand) {
        if let Some(pipeline) = &self.pipeline {
            let _ = pipeline.control.send(command);
        }
    }

    /// Decides what to do after a worker has ended.
    fn ended(&mut self, worker: WorkerId, exit: Exit, myself: &ActorRef<RunMessage>) {
        match exit {
            // A generation ends with its student, however the student ended.
            Exit::Done if worker == WorkerId::Student => self.stop_workers(),
            Exit::Done => {}
            exit => self.failed(worker, exit, myself),
        }
    }

    fn failed(&mut self, worker: WorkerId, exit: Exit, myself: &ActorRef<RunMessage>) {
        let Some(pipeline) = self.pipeline.as_mut() else {
            return;
        };
        // The first failure decides. Later ones result from it, as the other workers end.
        let remedy = if pipeline.stop.is_some() && self.next.is_none() {
            self.recovery.remedy(&worker, &exit, &pipeline.context.plan)
        } else {
            Remedy::Abandon
        };
        let (context, name) = (&pipeline.context, worker.to_string());
        let count_restart = || {
            metrics::WORKER_RESTARTS.with(&[&name]).increment(1);
            context.line(&worker).restarted();
        };
        match remedy {
            Remedy::Restart(after) => {
                count_restart();
                tracing::warn!(part = name, cause = %exit, "restarting after a failure");
                let message = format!("{name} is restarted: {exit}");
                context.note(EventKind::Restarted, &message);
                myself.send_after(after, move || RunMessage::Restart(worker));
                return;
            }
            remedy if context.peers.is_some() => {
                tracing::error!(part = %worker, cause = %exit, "a worker of this rank failed");
                let failure = self.recovery.end_rank(worker, exit, remedy, context);
                self.next.get_or_insert(Err(failure));
            }
            Remedy::Rewind(rewind) => {
                if rewind.kind == EventKind::Rewound {
                    count_restart();
                }
                self.next = Some(Ok(rewind));
            }
            Remedy::Abandon => {
                tracing::error!(part = %worker, cause = %exit, "a worker failed");
                let failure = RunError::Worker {
                    worker,
                    cause: exit,
                };
                self.next.get_or_insert(Err(failure));
            }
        }
        // The student saves the last completed step if it is still running.
        self.tell(StudentCommand::Abandon);
        let mut alive = self.alive.values();
        if !alive.any(|worker| *worker == WorkerId::Student) {
            self.stop_workers();
        }
    }

    fn stop_workers(&mut self) {
        if let Some(pipeline) = &mut self.pipeline {
            pipeline.stop = None;
        }
    }

    /// Restarts a worker, unless its generation is ending.
    async fn restart(&mut self, worker: WorkerId, myself: &ActorRef<RunMessage>) {
        // This restart may belong to a worker of an earlier generation.
        let is_alive = self.alive.values().any(|alive| *alive == worker);
        let goes_on = |pipeline: &&Pipeline| pipeline.stop.is_some() && !is_alive;
        let Some(pipeline) = self.pipeline.as_ref().filter(goes_on) else {
            return;
        };
        let body = pipeline.body(&worker);
        if let Err(cause) = self.spawn(worker.clone(), body, myself).await {
            self.ended(worker, cause, myself);
        }
    }

    /// After all workers of the generation have ended, ends the run or rewinds it.
    fn all_ended(&mut self, myself: &ActorRef<RunMessage>) {
        let Some(pipeline) = self.pipeline.take() else {
            return;
        };
        let board = &pipeline.context.board;
        match &self.next {
            Some(Ok(_)) => board.set_ready(false),
            _ => board.set_state(ddk_run::view::State::Ending),
        }
        self.alive.clear();
        pipeline.scheduler.stop(None);
        let rewind = match self.next.take() {
            None => {
                let outcome = pipeline.context.facts.outcome.lock().take();
                return self.end(Ok(outcome), myself);
            }
            Some(Err(error)) => return self.end(Err(error), myself),
            Some(Ok(rewind)) => rewind,
        };
        if let Err(error) = self.recovery.record(&rewind) {
            return self.end(Err(RunError::lost(error)), myself);
        }
        pipeline.context.note(rewind.kind, &rewind.message);
        metrics::REWINDS.with(&[rewind.reason]).increment(1);
        tracing::warn!(kind = %rewind.kind, message = rewind.message, "resuming from the last checkpoint");
        if self.is_stopped {
            return self.end(Ok(None), myself);
        }
        myself.send_after(rewind.after, || RunMessage::Build);
    }

    fn end(&mut self, result: Result<Option<Outcome>, RunError>, myself: &ActorRef<RunMessage>) {
        *self.result.lock() = Some(result);
        myself.stop(None);
    }
}
