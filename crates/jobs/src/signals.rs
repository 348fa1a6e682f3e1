//! SIGINT and SIGTERM: every long command listens to them from its start to its end and answers by what it is doing.
//!
//! While a run trains, the step is finished and saved. In every other phase nothing has to be saved: what is
//! on the disk is whole at each instant, so the process says what the same command will do next and ends at
//! once. A change of phases and an answer exclude each other, so a signal belongs to exactly one phase.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, TryLockError},
    time::Duration,
};

use anyhow::{Context, Result};
use ddk_run::{records::EventKind, view};
use ddk_settings::Settings;
use rustix::process::{Pid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    control::RunControl,
    faults::Faults,
    hint::Ended,
    phase::Phase,
    progress::{lock, say},
    systemd,
};

/// An end that takes longer is cut short: a disk that hangs, a browser that reads slowly.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// The grace before settings are known.
const GRACE: Duration = Duration::from_secs(120);

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

impl Signal {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// The exit code of a process that it ended: 128 plus its number.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }

    /// The end of a command that it stopped, once that is said.
    pub fn ended(self) -> anyhow::Error {
        Ended(self.exit_code()).into()
    }

    fn to_system(self) -> rustix::process::Signal {
        match self {
            Self::Interrupt => rustix::process::Signal::INT,
            Self::Terminate => rustix::process::Signal::TERM,
        }
    }
}

/// The process's answers to signals. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signals(Arc<Mutex<State>>);

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "State({:?})", self.came)
    }
}

struct State {
    answer: Answer,
    /// What goes wrong on purpose in the job at work.
    faults: Arc<Faults>,
    /// The first one that came.
    came: Option<Signal>,
    /// The folder of the run at work, where its end is recorded.
    run: Option<PathBuf>,
    /// Tells whoever watches the run that it was stopped.
    farewell: Option<Box<dyn Fn() + Send>>,
    /// How long a step may take to be finished and saved.
    grace: Duration,
}

/// What a signal does now.
enum Answer {
    /// The process ends at once.
    End(Phase),
    /// The run is told, if it trains; while models are loaded the process ends at once.
    Train(Arc<RunControl>),
    /// The child gets every signal; this process ends with it.
    Child(Child),
}

/// A child that can be signaled: its id is here only until the child is reaped, so that it never names another process.
pub type Child = Arc<Mutex<Option<Pid>>>;

impl Signals {
    /// Starts to listen for signals on a separate thread.
    ///
    /// # Errors
    /// If a signal handler, the runtime or the thread cannot be set up.
    pub fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let context = runtime.enter();
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut terminate = listen(SignalKind::terminate())?;
        drop(context);
        let signals = Self(Arc::new(Mutex::new(State {
            answer: Answer::End(Phase::Start),
            faults: Arc::default(),
            came: None,
            run: None,
            farewell: None,
            grace: GRACE,
        })));
        let listener = signals.clone();
        let work = async move {
            let mut is_first = true;
            loop {
                let signal = tokio::select! {
                    _ = interrupt.recv() => Signal::Interrupt,
                    _ = terminate.recv() => Signal::Terminate,
                };
                if !std::mem::take(&mut is_first) && !listener.forwards() {
                    exit(signal);
                }
                // On another thread, so that the next signal is heard whatever this one waits for.
                let answering = listener.clone();
                tokio::task::spawn_blocking(move || answering.answer(signal));
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(work))?;
        Ok(signals)
    }

    /// A job with these settings begins: these faults on purpose strike in it.
    ///
    /// # Errors
    /// The plan of faults is not one, or faults are not allowed.
    pub fn begin_job(&self, settings: &Settings) -> Result<()> {
        let faults = Faults::parse(&settings.fault_injection.plan)?;
        self.state().faults = faults;
        Ok(())
    }

    /// The faults on purpose of the job at work.
    pub(crate) fn faults(&self) -> Arc<Faults> {
        Arc::clone(&self.state().faults)
    }

    /// A phase begins in which a signal ends the process at once. Faults on purpose strike here.
    ///
    /// # Errors
    /// A fault strikes.
    pub fn begin(&self, phase: Phase) -> Result<()> {
        let mut state = self.state();
        state.answer = Answer::End(phase);
        // The phase before was told, and was done before it could stop.
        if let Some(signal) = state.came {
            state.end(signal, phase);
        }
        drop(state);
        Ok(self.faults().phase(phase)?)
    }

    /// This process works on the run in `folder` from now on, and may write there.
    pub fn in_run(&self, folder: &Path) {
        self.state().run = Some(folder.to_owned());
    }

    /// The run is summed up: it cannot be stopped any more.
    pub fn run_is_done(&self) {
        self.state().run = None;
    }

    /// What is done for those who watch when a signal ends the process, and how long a step may take.
    pub fn watched(&self, grace: Duration, farewell: impl Fn() + Send + 'static) {
        let mut state = self.state();
        state.grace = grace;
        state.farewell = Some(Box::new(farewell));
    }

    /// The run is left, however it ended.
    pub fn left(&self) {
        let mut state = self.state();
        state.answer = Answer::End(Phase::Leave);
        state.run = None;
        state.farewell = None;
    }

    /// Workers are at work: a signal goes to them once they train. The signal that came before, which no worker has
    /// heard.
    pub(crate) fn train(&self, run: &Arc<RunControl>) -> Option<Signal> {
        self.answer_by(Answer::Train(Arc::clone(run)))
    }

    /// Signals go to this child, which may not have started yet.
    pub fn forward(&self, child: &Child) -> Option<Signal> {
        self.answer_by(Answer::Child(Arc::clone(child)))
    }

    fn answer_by(&self, answer: Answer) -> Option<Signal> {
        let mut state = self.state();
        state.answer = answer;
        state.came
    }

    /// The signal that has come.
    pub fn came(&self) -> Option<Signal> {
        self.state().came
    }

    /// Whether a further signal is for a child. An answer that is being given ends this process.
    fn forwards(&self) -> bool {
        match self.0.try_lock() {
            Ok(state) => matches!(state.answer, Answer::Child(_)),
            Err(TryLockError::Poisoned(state)) => {
                matches!(state.into_inner().answer, Answer::Child(_))
            }
            Err(TryLockError::WouldBlock) => false,
        }
    }

    /// Answers a signal, or whoever asks for the same.
    pub(crate) fn answer(&self, signal: Signal) {
        let mut state = self.state();
        state.came.get_or_insert(signal);
        systemd::stopping();
        match &state.answer {
            Answer::End(phase) => state.end(signal, *phase),
            Answer::Train(run) if !run.trains() => {
                let phase = match run.state() {
                    view::State::Starting => Phase::Load,
                    _ => Phase::Between,
                };
                state.end(signal, phase)
            }
            Answer::Train(run) => {
                let name = signal.name();
                say(&format!(
                    "{name}: finishing the step and saving; a second signal ends the process at once"
                ));
                tracing::info!(name, "stop requested");
                run.stop();
                let grace = state.grace;
                later(grace, move || {
                    say(&format!(
                        "not finished {} s after {name} (recovery.shutdown_grace_seconds): exiting now; the run \
                         resumes from its last checkpoint",
                        grace.as_secs_f64()
                    ));
                    exit(signal)
                });
            }
            Answer::Child(child) => {
                let child = lock(child);
                if let Some(id) = *child {
                    // A child that has ended is not reaped yet: the signal does nothing.
                    let _ = kill_process(id, signal.to_system());
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

impl State {
    /// Says which phase it interrupts, records that, and ends the process. It holds the lock, so no phase follows.
    fn end(&self, signal: Signal, phase: Phase) -> ! {
        let name = signal.name();
        later(END_PATIENCE, move || exit(signal));
        say(&format!(
            "{name}: stopped while {}; {}",
            phase.what(),
            phase.next()
        ));
        tracing::info!(name, phase = phase.what(), "stop requested");
        if let Some(run) = &self.run {
            let message = format!("{name} while {}", phase.what());
            if let Err(error) = ddk_run::append_event(run, EventKind::Stopped, &message) {
                say(&format!(
                    "warning: cannot record the stop in events.jsonl: {error}"
                ));
            }
        }
        if let Some(farewell) = &self.farewell {
            farewell();
        }
        exit(signal)
    }
}

/// Does something later, where the process is still there.
fn later(after: Duration, what: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        std::thread::sleep(after);
        what();
    });
}

/// Ends the process. Nothing of libtorch is taken down while its threads compute; what is saved is saved.
fn exit(signal: Signal) -> ! {
    // SAFETY: `_exit` takes a number and ends the process.
    unsafe { libc::_exit(i32::from(signal.exit_code())) }
}
