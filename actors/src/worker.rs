//! A worker: a named thread that an actor owns. All parts that compute share this.
//!
//! The actor starts only when the worker says that it is ready (its model is built), so a part that cannot be
//! built is an error of the start. However the thread ends, exactly one [`Exit`] reaches the actor, which
//! ends with it; the actor of the run hears of that from ractor.

use std::{
    convert::Infallible,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Instant,
};

use crossbeam::channel::{Receiver, RecvError, SendError, TryRecvError};
use ddk_run::{Journal, Overrides, RunFileError, records::EventKind};
use ddk_telemetry::{Board, Worker};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::{Observer, Outcome, PortError, RunPlan};

/// Which worker; its name on threads, boards and in messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WorkerId {
    /// A domain's loader, by the domain's name.
    Loader(String),
    /// The batcher.
    Batcher,
    /// A teacher, by its worker.
    Teacher(usize),
    /// The student.
    Student,
    /// The checkpointer.
    Checkpointer,
    /// The weight scheduler, which has no thread.
    MixtureActor,
}

impl fmt::Display for WorkerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader(domain) => write!(formatter, "loader-{domain}"),
            Self::Batcher => formatter.write_str("batcher"),
            Self::Teacher(replica) => write!(formatter, "teacher-{replica}"),
            Self::Student => formatter.write_str("student"),
            Self::Checkpointer => formatter.write_str("checkpointer"),
            Self::MixtureActor => formatter.write_str("weight scheduler"),
        }
    }
}

/// How a worker ended. As an error it ends the worker's loop: [`Exit::Done`] if the run is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    /// It has done its work, or was told to stop.
    #[error("it is done")]
    Done,
    /// It gave up on an error.
    #[error(transparent)]
    Failed(#[from] PortError),
    /// It panicked; the text of the panic.
    #[error("it panicked: {0}")]
    Panicked(String),
}

impl Exit {
    /// The exit that an actor's error holds; any other error is a failure.
    pub(crate) fn of(error: ActorProcessingErr) -> Self {
        match error.downcast::<Self>() {
            Ok(exit) => *exit,
            Err(error) => Self::Failed(PortError::Other(error.to_string())),
        }
    }
}

/// Nobody is left to take it: the run ends.
impl<Item> From<SendError<Item>> for Exit {
    fn from(_: SendError<Item>) -> Self {
        Self::Done
    }
}

/// Nobody is left to send: the run ends.
impl From<RecvError> for Exit {
    fn from(_: RecvError) -> Self {
        Self::Done
    }
}

/// What the workers of a run share.
#[derive(Clone)]
pub struct Context {
    /// What is to be done.
    pub plan: Arc<RunPlan>,
    /// Where lines go.
    pub journal: Arc<Journal>,
    /// What was changed since the start.
    pub overrides: Arc<Overrides>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// Where workers say what they do.
    pub board: Arc<Board>,
    /// What they find out.
    pub facts: Arc<Facts>,
    /// Closed when the run ends; nothing is ever sent over it.
    pub stop: Receiver<Infallible>,
}

/// What one worker finds out and others read.
#[derive(Debug, Default)]
pub struct Facts {
    /// The teacher's perplexities, known before the first interval.
    pub teacher_perplexities: OnceLock<Vec<f64>>,
    /// Seconds that all replicas of the teacher have been busy with labeling in this process.
    pub teacher_busy: Slot<f64>,
    /// When the first micro-batch was sent.
    pub first_sent: OnceLock<Instant>,
    /// What the run came to.
    pub outcome: Slot<Option<Outcome>>,
}

impl Context {
    /// A worker's line on the board.
    pub fn line(&self, worker: &WorkerId) -> Worker {
        self.board.worker(&worker.to_string())
    }

    /// Whether the run has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Records an event after the last step and tells the observer. One that cannot be written is logged.
    pub fn note(&self, kind: EventKind, message: &str) {
        if let Some(event) = self.journal.note(kind, message) {
            self.observer.on_event(&event);
        }
    }

    /// Records an event and tells the observer.
    ///
    /// # Errors
    /// If the event cannot be written to `events.jsonl`.
    pub fn event(&self, step: u64, kind: EventKind, message: &str) -> Result<(), RunFileError> {
        let event = self.journal.event(step, kind, message)?;
        self.observer.on_event(&event);
        Ok(())
    }
}

/// A value that outlives the thread that works on it, even a thread that panicked.
#[derive(Debug, Default)]
pub struct Slot<Value>(Mutex<Value>);

impl<Value> Slot<Value> {
    /// A slot that holds `value`.
    pub fn new(value: Value) -> Self {
        Self(Mutex::new(value))
    }

    /// Access to the value.
    pub fn lock(&self) -> MutexGuard<'_, Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that the worker is ready.
pub struct Ready(oneshot::Sender<()>);

impl Ready {
    /// To be called once, when everything is built.
    pub fn say(self) {
        // The other end is gone only where the start has been given up.
        let _ = self.0.send(());
    }
}

/// What a worker's thread does: build, say ready, work.
pub type Body = Box<dyn FnOnce(Ready) -> Result<(), Exit> + Send>;

/// The actor of any worker. It starts with the worker's line on the board, which also names the thread (the
/// system keeps at most 15 bytes), and the worker's body. Its only message is the thread's exit.
pub struct WorkerActor;

impl Actor for WorkerActor {
    type Msg = Exit;
    type State = ();
    type Arguments = (Worker, Body);

    async fn pre_start(
        &self,
        myself: ActorRef<Exit>,
        (line, body): Self::Arguments,
    ) -> Result<(), ActorProcessingErr> {
        let (ready, is_ready) = oneshot::channel();
        let (ended, exit) = oneshot::channel();
        let name = line.name().to_owned();
        thread::Builder::new().name(name).spawn(move || {
            line.computing();
            let exit = run(body, Ready(ready));
            line.stopped();
            // Nobody listens if the run's actors have been dropped.
            let _ = ended.send(exit);
        })?;
        if is_ready.await.is_err() {
            // The word was dropped unsaid: the thread ends without having been ready.
            return Err(exit.await?.into());
        }
        tokio::spawn(async move { exit.await.map(|exit| myself.cast(exit)) });
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Exit>,
        exit: Exit,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        match exit {
            Exit::Done => {
                myself.stop(None);
                Ok(())
            }
            exit => Err(exit.into()),
        }
    }
}

fn run(body: Body, ready: Ready) -> Exit {
    match catch_unwind(AssertUnwindSafe(|| body(ready))) {
        Ok(Ok(())) => Exit::Done,
        Ok(Err(exit)) => exit,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref().map(String::as_str));
            Exit::Panicked(text.unwrap_or("no text").to_owned())
        }
    }
}
