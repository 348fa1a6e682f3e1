//! A worker: a named thread that an actor owns. All parts that compute share this.
//!
//! The actor starts only when the worker says that it is ready (its model is built), so a part that cannot be
//! built is an error of the start. However the thread ends, exactly one [`Exit`] reaches the actor, which
//! ends with it; the supervisor hears of that from ractor.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use crate::PortError;

/// Nothing is ever sent over the stop channel: it is closed.
#[derive(Debug, Clone, Copy)]
pub enum Never {}

/// Which worker; its name on threads, boards and in messages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WorkerId {
    /// A domain's loader.
    Loader {
        /// Index of the domain.
        index: usize,
        /// Name of the domain.
        domain: String,
    },
    /// The batcher.
    Batcher,
    /// A teacher, by its lane.
    Teacher(usize),
    /// The student.
    Student,
    /// The checkpointer.
    Checkpointer,
    /// The weight scheduler, which has no thread.
    WeightScheduler,
}

impl WorkerId {
    pub(crate) fn has_thread(&self) -> bool {
        *self != Self::WeightScheduler
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loader { domain, .. } => write!(formatter, "loader-{domain}"),
            Self::Batcher => formatter.write_str("batcher"),
            Self::Teacher(lane) => write!(formatter, "teacher-{lane}"),
            Self::Student => formatter.write_str("student"),
            Self::Checkpointer => formatter.write_str("checkpointer"),
            Self::WeightScheduler => formatter.write_str("weight scheduler"),
        }
    }
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It has done its work, or was told to stop.
    Done,
    /// It gave up on an error.
    Failed(PortError),
    /// It panicked; the text of the panic.
    Panicked(String),
}

impl fmt::Display for Exit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => formatter.write_str("it is done"),
            Self::Failed(error) => error.fmt(formatter),
            Self::Panicked(text) => write!(formatter, "it panicked: {text}"),
        }
    }
}

impl std::error::Error for Exit {}

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
pub type Body = Box<dyn FnOnce(Ready) -> Result<(), PortError> + Send>;

/// The actor of any worker.
pub struct WorkerActor;

/// What the worker's thread tells its actor.
pub enum WorkerMessage {
    /// The thread has ended.
    Exited(Exit),
}

/// A worker to be started.
pub struct WorkerSpec {
    /// Name of the thread (at most 15 bytes are kept by the system).
    pub name: String,
    /// Its work.
    pub body: Body,
}

impl Actor for WorkerActor {
    type Msg = WorkerMessage;
    type State = ();
    type Arguments = WorkerSpec;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        spec: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let (ready, is_ready) = oneshot::channel();
        let (early, mut early_exit) = oneshot::channel();
        let actor = myself.clone();
        thread::Builder::new().name(spec.name).spawn(move || {
            let exit = run(spec.body, Ready(ready));
            // Before the worker is ready the actor listens here; afterwards to its messages.
            if let Err(exit) = early.send(exit) {
                let _ = actor.cast(WorkerMessage::Exited(exit));
            }
        })?;
        tokio::select! {
            biased;
            Ok(()) = is_ready => {}
            Ok(exit) = &mut early_exit => return Err(exit.into()),
        }
        // A worker may have ended between its word and now; once this is closed, its exit goes to the mailbox.
        early_exit.close();
        if let Ok(exit) = early_exit.try_recv() {
            myself.cast(WorkerMessage::Exited(exit))?;
        }
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        (): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            WorkerMessage::Exited(Exit::Done) => {
                myself.stop(None);
                Ok(())
            }
            WorkerMessage::Exited(exit) => Err(exit.into()),
        }
    }
}

fn run(body: Body, ready: Ready) -> Exit {
    match catch_unwind(AssertUnwindSafe(|| body(ready))) {
        Ok(Ok(())) => Exit::Done,
        Ok(Err(error)) => Exit::Failed(error),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| panic.downcast_ref::<String>().cloned());
            Exit::Panicked(text.unwrap_or_else(|| "no text".to_owned()))
        }
    }
}
