//! Watches a run and sends it commands.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use ddk_actors::{Observer, RunHandle, StepReport};
use ddk_run::{
    Source,
    control::{self, Command},
    records::{EventKind, EventLine, MixtureLine},
};

use super::models::mix;

/// Watches a run and sends it commands after steps.
#[derive(Default)]
pub struct Watcher {
    pub events: Mutex<Vec<EventLine>>,
    pub answers: Mutex<Vec<control::Outcome>>,
    pub(super) telling: Mutex<Option<Telling>>,
    pub steps: AtomicU64,
    /// Commands to send when an event of a kind is first recorded.
    pub replies: Mutex<Vec<(EventKind, Command)>>,
}

/// The commands to send to a run, and when.
pub(super) struct Telling {
    pub(super) run: RunHandle,
    pub(super) stop_after: Option<u64>,
    pub(super) commands: Vec<(u64, Command)>,
    pub(super) runtime: tokio::runtime::Handle,
}

impl Telling {
    /// Sends a command. After this returns, the student sees it at its next boundary. The answer comes later.
    fn tell(&self, command: Command, watcher: &Arc<Watcher>) {
        let (run, watcher) = (self.run.clone(), watcher.clone());
        let mut asking = Box::pin(async move {
            let answer = run.ask(command, Source::Socket).await;
            watcher.answers.lock().unwrap().push(answer);
        });
        self.runtime.block_on(async {
            // Polling once sends the command. The status request is answered only after the command was passed on.
            let is_answered = tokio::select! {
                biased;
                () = &mut asking => true,
                () = std::future::ready(()) => false,
            };
            if !is_answered {
                tokio::spawn(asking);
                let _ = self.run.ask(Command::Status, Source::Socket).await;
            }
        });
    }
}

impl Watcher {
    /// Sends a command at once, from any thread of the run.
    pub fn tell(self: &Arc<Self>, command: Command) {
        if let Some(telling) = &*self.telling.lock().unwrap() {
            telling.tell(command, self);
        }
    }
}

/// The run's observer; it shares the watcher with the test.
pub struct Watching(pub Arc<Watcher>);

impl Observer for Watching {
    fn on_step(&self, step: &StepReport<'_>) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        let telling = self.0.telling.lock().unwrap();
        let Some(telling) = &*telling else {
            return;
        };
        for (_, command) in telling
            .commands
            .iter()
            .filter(|(after, _)| *after == step.line.step)
        {
            telling.tell(command.clone(), &self.0);
        }
        if telling.stop_after == Some(step.line.step) {
            telling.tell(Command::Stop, &self.0);
            dawdle(step.line.step);
        }
    }

    fn on_mixture(&self, _: &MixtureLine) {}

    fn on_event(&self, event: &EventLine) {
        self.0.events.lock().unwrap().push(event.clone());
        let mut replies = self.0.replies.lock().unwrap();
        let found = replies.iter().position(|(kind, _)| *kind == event.kind);
        let found = found.map(|index| replies.remove(index));
        drop(replies);
        if let Some((_, command)) = found {
            self.0.tell(command);
        }
    }
}

/// Keeps a thread busy without a clock; `seed` determines how long.
pub fn dawdle(seed: u64) {
    for _ in 0..mix(seed, 5) % 400 {
        std::thread::yield_now();
    }
}
