//! Handles SIGINT and SIGTERM. Every long command listens for them from start to end and responds according to its
//! phase.
//!
//! During training, DDK finishes the step and saves a checkpoint. Other phases have nothing to save, because the
//! files on disk are always complete. The process then prints what the same command will do next, and exits at
//! once. A phase change and a response to a signal exclude each other, so a signal belongs to exactly one phase.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use ddk_run::{records::EventKind, view};
use ddk_settings::Settings;
use ddk_telemetry::Activity;
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    control::RunControl,
    display::{self, say, set_line_seconds},
    faults::Faults,
    hint::Ended,
    phase::Phase,
    ranks::under_torchrun,
    systemd,
};

/// Maximum time for an orderly exit. A disk may hang, or a browser may read slowly.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// A second signal within this time of the first is the same one, if `torchrun` passes it on and the cluster also sends
/// it to every process.
const ECHO: Duration = Duration::from_secs(1);
/// Grace period before the settings are known.
const GRACE: Duration = Duration::from_secs(120);

/// A signal that asks the process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT.
    Interrupt = 2,
    /// SIGTERM.
    Terminate = 15,
}

impl Signal {
    /// The signal's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Interrupt => "SIGINT",
            Self::Terminate => "SIGTERM",
        }
    }

    /// The exit code of a process that this signal ended: 128 plus the signal's number.
    pub fn exit_code(self) -> u8 {
        128 + self as u8
    }

    /// Returns the error that ends a stopped command after it has told the user.
    pub fn ended(self) -> anyhow::Error {
        Ended(self.exit_code()).into()
    }
}

/// The process's signal handling. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Signals(Arc<Mutex<State>>);

impl std::fmt::Debug for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "State({:?})", self.came)
    }
}

struct State {
    answer: Answer,
    /// Injected faults of the current job.
    faults: Arc<Faults>,
    /// The first signal received, or SIGTERM if a command asked for the same.
    came: Option<Signal>,
    /// Whether a command asked for the stop, not a signal.
    commanded: bool,
    /// Folder of the current run, where a stop is recorded.
    run: Option<PathBuf>,
    /// Tells clients that watch the run that it was stopped.
    farewell: Option<Box<dyn Fn() + Send>>,
    /// Maximum time to finish and save a step.
    grace: Duration,
}

/// The current response to a signal.
pub(crate) enum Answer {
    /// End the process at once.
    End(Phase),
    /// Tell the run to stop if it is training; otherwise end the process at once.
    Train(Arc<RunControl>),
    /// Forward every signal to the child, which may not have started yet. This process ends with the child.
    Child(Child),
}

impl Answer {
    /// Shows what the process is doing while it responds like this.
    fn show(&self) {
        let activity = Activity::of_process();
        match self {
            Self::End(Phase::Leave) => activity.rest(),
            Self::End(phase) => activity.begin(phase.describe().0),
            Self::Train(_) => activity.begin(Phase::Load.describe().0),
            // The child shows what it is doing.
            Self::Child(_) => return activity.rest(),
        }
        display::show();
    }
}

/// A child that can receive signals. Its id is removed before the child is reaped, so it never names another
/// process.
pub type Child = Arc<Mutex<Option<Pid>>>;

impl Signals {
    /// Starts listening for signals on a separate thread.
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
            commanded: false,
            run: None,
            farewell: None,
            grace: GRACE,
        })));
        let listener = signals.clone();
        let work = async move {
            let mut first: Option<Instant> = None;
            loop {
                let signal = tokio::select! {
                    _ = interrupt.recv() => Signal::Interrupt,
                    _ = terminate.recv() => Signal::Terminate,
                };
                if let Some(first) = first {
                    if under_torchrun() && first.elapsed() < ECHO {
                        continue;
                    }
                    if !listener.forwards() {
                        exit(signal);
                    }
                }
                first.get_or_insert_with(Instant::now);
                // Respond on another thread, so that a blocked response does not keep the next signal from being
                // received.
                let answering = listener.clone();
                tokio::task::spawn_blocking(move || answering.answer(signal));
            }
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(work))?;
        Ok(signals)
    }

    /// Begins a job with these settings, including their injected faults.
    ///
    /// # Errors
    /// If the fault plan is invalid, or if faults are not allowed.
    pub fn begin_job(&self, settings: &Settings) -> Result<()> {
        let faults = Faults::parse(&settings.fault_injection.plan)?;
        set_line_seconds(settings.log.interval_seconds);
        self.state().faults = faults;
        Ok(())
    }

    /// Returns the injected faults of the current job.
    pub(crate) fn faults(&self) -> Arc<Faults> {
        Arc::clone(&self.state().faults)
    }

    /// Begins a phase in which a signal ends the process at once. Injects a fault if one is planned for the phase.
    ///
    /// # Errors
    /// If a planned fault returns an error.
    pub fn begin(&self, phase: Phase) -> Result<()> {
        let mut state = self.state();
        state.answer = Answer::End(phase);
        state.answer.show();
        // The signal arrived during the previous phase, which finished before it could stop.
        if let Some(signal) = state.came {
            state.end(signal, phase);
        }
        drop(state);
        Ok(self.faults().phase(phase)?)
    }

    /// Sets the current run. From now on, this process may write to `folder`.
    pub fn in_run(&self, folder: &Path) {
        self.state().run = Some(folder.to_owned());
    }

    /// Marks the run as done: its summary is written, so it can no longer be stopped.
    pub fn run_is_done(&self) {
        self.state().run = None;
    }

    /// Sets the grace period for a step, and what to do for clients that watch the run when a signal ends the
    /// process.
    pub fn watched(&self, grace: Duration, farewell: impl Fn() + Send + 'static) {
        let mut state = self.state();
        state.grace = grace;
        state.farewell = Some(Box::new(farewell));
    }

    /// Leaves the run, however it ended.
    pub fn left(&self) {
        let mut state = self.state();
        state.answer = Answer::End(Phase::Leave);
        state.answer.show();
        state.run = None;
        state.farewell = None;
    }

    /// Responds like this from now on. Returns a signal that arrived earlier, which no worker or child has received.
    pub(crate) fn answer_by(&self, answer: Answer) -> Option<Signal> {
        let mut state = self.state();
        state.answer = answer;
        state.answer.show();
        state.came
    }

    /// Returns the first signal received, if any.
    pub fn came(&self) -> Option<Signal> {
        self.state().came
    }

    /// Responds to a command like to SIGTERM.
    pub(crate) fn obey(&self) {
        let mut state = self.state();
        state.commanded = state.came.is_none();
        drop(state);
        self.answer(Signal::Terminate);
    }

    /// Returns whether the process received a signal before any command to stop.
    pub(crate) fn is_signaled(&self) -> bool {
        let state = self.state();
        state.came.is_some() && !state.commanded
    }

    /// Returns whether the next signal is for a child. If the lock is held, the current response ends this process.
    fn forwards(&self) -> bool {
        let state = self.0.try_lock();
        state.is_some_and(|state| matches!(state.answer, Answer::Child(_)))
    }

    /// Responds to a signal.
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
                    let limit = if under_torchrun() {
                        ", at most 25 under torchrun"
                    } else {
                        ""
                    };
                    say(&format!(
                        "not finished {} s after {name} (recovery.shutdown_grace_seconds{limit}): exiting now; the \
                         run resumes from its last checkpoint",
                        grace.as_secs_f64()
                    ));
                    exit(signal)
                });
            }
            Answer::Child(child) => {
                let child = child.lock();
                let signal = rustix::process::Signal::from_named_raw(signal as i32);
                if let Some((id, signal)) = child.zip(signal) {
                    // If the child has ended, it is not reaped yet, so the signal has no effect.
                    let _ = kill_process(id, signal);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    /// Reports and records the interrupted phase, then ends the process. It holds the lock, so no other phase can
    /// begin.
    fn end(&self, signal: Signal, phase: Phase) -> ! {
        let name = signal.name();
        later(END_PATIENCE, move || exit(signal));
        let (what, next) = phase.describe();
        display::clear();
        say(&format!("{name}: stopped while {what}; {next}"));
        tracing::info!(name, phase = what, "stop requested");
        if let Some(run) = &self.run {
            let message = format!("{name} while {what}");
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

/// Runs `what` after a delay, if the process still exists.
pub(crate) fn later(after: Duration, what: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        std::thread::sleep(after);
        what();
    });
}

/// Ends the process at once, because libtorch must not be torn down while its threads compute. Saved files stay
/// intact.
fn exit(signal: Signal) -> ! {
    // SAFETY: `_exit` takes a number and ends the process.
    unsafe { libc::_exit(i32::from(signal.exit_code())) }
}
