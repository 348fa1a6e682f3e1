//! SIGHUP: settings are read again; what may change while a run goes on is taken, the rest is named.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use ddk_actors::Live;
use ddk_settings::{Settings, diff};
use tokio::signal::unix::{SignalKind, signal};

use super::threads;
use crate::{
    args, config,
    progress::{Printer, say},
};

/// Reads the settings again whenever the process is told to.
pub(super) fn on_hangup(
    source: args::ConfigArgs,
    settings: Settings,
    live: Arc<Live>,
    printer: Arc<Printer>,
) -> Result<()> {
    let mut current = settings;
    at_hangup(move || {
        let read = config::load(&source).and_then(|loaded| {
            let mut new = loaded.settings;
            threads::adopt(&mut new, &current);
            take(&mut current, &new, &live, &printer)
        });
        if let Err(error) = read {
            tracing::warn!(%error, "the settings were not read again");
            say(&format!("SIGHUP: nothing changed: {error}"));
        }
    })?;
    Ok(())
}

/// Answers SIGHUP so whenever it comes.
fn at_hangup(mut answer: impl FnMut() + Send + 'static) -> Result<tokio::task::JoinHandle<()>> {
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            answer();
        }
    }))
}

/// While it is held, SIGHUP is answered, but nothing is read: the settings of a run within a run are derived ones.
pub(super) struct NotYet(tokio::task::JoinHandle<()>);

impl Drop for NotYet {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Answers SIGHUP with a word.
pub(super) fn not_yet() -> Result<NotYet> {
    let text = "SIGHUP: nothing changed: `ddk train` reads settings again once its own steps begin";
    Ok(NotYet(at_hangup(move || say(text))?))
}

fn take(current: &mut Settings, new: &Settings, live: &Live, printer: &Printer) -> Result<()> {
    let changes = diff(current, new)?;
    if changes.is_empty() {
        say("SIGHUP: no setting has changed");
    }
    for change in &changes {
        let (key, [old, new]) = (&change.path, change.shown());
        let done = if change.key.live {
            "taken"
        } else {
            "left as it is: it needs a new start"
        };
        tracing::info!(key, old, new, done, "a setting was read again");
        say(&format!("SIGHUP: {key} was {old}, is {new}: {done}"));
    }
    current.checkpoint.every = new.checkpoint.every;
    current.checkpoint.keep = new.checkpoint.keep;
    current.log.line_seconds = new.log.line_seconds;
    current.student.lr_end = new.student.lr_end;
    live.set(
        new.checkpoint.every,
        new.checkpoint.keep,
        new.student.lr_end,
    );
    printer.set_every(Duration::from_secs_f64(new.log.line_seconds));
    Ok(())
}
