//! A worker: a named thread that an actor owns. Everything that computes runs in one.
//!
//! The actor's start completes when the worker reports that it is ready, with its model built. So a worker that cannot
//! be built fails the start. However the thread ends, exactly one [`Exit`] reaches the actor, which then ends too.
//! ractor reports that to the run's actor.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    thread,
    time::Instant,
};

use crossbeam::channel::{Receiver, RecvError, SendError, TryRecvError};
use ddk_run::{Journal, Overrides, RunFileError, records::EventKind, texts::TextLine};
use ddk_telemetry::{Board, Worker};
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::{Observer, Outcome, Peers, PortError, RunPlan};

/// A worker. Its name appears on threads, on the board and in messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum WorkerId {
    /// A domain's loader, by the domain's name.
    #[strum(to_string = "loader-{0}")]
    Loader(String),
    /// The batcher.
    Batcher,
    /// A teacher, by its replica.
    #[strum(to_string = "teacher-{0}")]
    Teacher(usize),
    /// The student.
    Student,
    /// The checkpointer.
    Checkpointer,
    /// The weight scheduler, which has no thread.
    #[strum(to_string = "weight scheduler")]
    MixtureActor,
}

/// How a worker ended. Returned as an error, it ends the worker's loop; [`Exit::Done`] means that the run is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Exit {
    /// It finished its work or was told to stop.
    #[error("it is done")]
    Done,
    /// It failed with an error.
    #[error(transparent)]
    Failed(#[from] PortError),
    /// It panicked, with this message.
    #[error("it panicked: {0}")]
    Panicked(String),
}

impl Exit {
    /// The exit inside an actor's error. Any other error is a failure.
    pub(crate) fn of(error: ActorProcessingErr) -> Self {
        match error.downcast::<Self>() {
            Ok(exit) => *exit,
            Err(error) => Self::Failed(PortError::Other(error.to_string())),
        }
    }
}

/// No receiver is left, so the run is ending.
impl<Item> From<SendError<Item>> for Exit {
    fn from(_: SendError<Item>) -> Self {
        Self::Done
    }
}

/// No sender is left, so the run is ending.
impl From<RecvError> for Exit {
    fn from(_: RecvError) -> Self {
        Self::Done
    }
}

/// What the workers of a run share.
#[derive(Clone)]
pub struct Context {
    /// The run's plan.
    pub plan: Arc<RunPlan>,
    /// The run's JSON Lines files.
    pub journal: Arc<Journal>,
    /// Changes since the run's start.
    pub overrides: Arc<Overrides>,
    /// Watches the run.
    pub observer: Arc<dyn Observer>,
    /// Shows what each worker is doing.
    pub board: Arc<Board>,
    /// The other ranks, if there are several.
    pub peers: Option<Arc<dyn Peers>>,
    /// What workers find out for others.
    pub facts: Arc<Facts>,
    /// Closed when the run ends; nothing is ever sent over it.
    pub stop: Receiver<Infallible>,
}

/// What one worker finds out and others read.
#[derive(Debug, Default)]
pub struct Facts {
    /// The teacher's perplexities, known before the first interval.
    pub teacher_perplexities: OnceLock<Vec<f64>>,
    /// Seconds that all teacher replicas together have spent labeling in this process.
    pub teacher_busy: Mutex<f64>,
    /// What the teacher and copies of the student wrote, until the student records it.
    pub texts: Mutex<Vec<TextLine>>,
    /// Set once the teacher has written, so that a restarted worker does not write again.
    pub teacher_wrote: OnceLock<()>,
    /// When the first micro-batch was sent.
    pub first_sent: OnceLock<Instant>,
    /// The run's result.
    pub outcome: Mutex<Option<Outcome>>,
}

impl Context {
    /// A worker's line on the board.
    pub fn line(&self, worker: &WorkerId) -> Worker {
        self.board.worker(&worker.to_string())
    }

    /// The rank of this process.
    pub fn rank(&self) -> usize {
        self.peers.as_ref().map_or(0, |peers| peers.rank())
    }

    /// The number of ranks.
    pub fn ranks(&self) -> usize {
        self.peers.as_ref().map_or(1, |peers| peers.size())
    }

    /// Whether the run has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Records an event at the last recorded step and tells the observer. If it cannot be written, it is logged.
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

/// Reports that the worker is ready.
pub struct Ready(oneshot::Sender<()>);

impl Ready {
    /// Reports it. Call this once everything is built.
    pub fn say(self) {
        // The receiver is gone only if the start was abandoned.
        let _ = self.0.send(());
    }
}

/// What a worker's thread runs: it builds its parts, reports that it is ready, and works.
pub type Body = Box<dyn FnOnce(Ready) -> Result<(), Exit> + Send>;

/// The actor of any worker. Its arguments are the worker's line on the board and the worker's body. The line's name is
/// also the thread's name (the system keeps at most 15 bytes). Its only message is the thread's exit.
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
            // The receiver is gone if the run's actors have been dropped.
            let _ = ended.send(exit);
        })?;
        if is_ready.await.is_err() {
            // The sender was dropped: the thread ends without having been ready.
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
        Ok(ended) => ended.err().unwrap_or(Exit::Done),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref().map(String::as_str));
            Exit::Panicked(text.unwrap_or("no text").to_owned())
        }
    }
}
