//! `ddk watch`: shows the essentials of a run in the terminal.
//!
//! One thread queries the run, and another draws it, so a slow server never delays the response to a key.

mod view;

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ddk_run::{RunFolder, RunView, view::Steps};
use ddk_telemetry::api::{Event as RunEvent, Status};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyModifiers},
};

use crate::{client::Client, ctl, serve};
use ddk_jobs::hint::Hint;

/// Interval between looking for keys and redrawing.
const TICK: Duration = Duration::from_millis(100);
/// Interval between queries of the run.
const ASK: Duration = Duration::from_secs(1);

/// The data on the screen.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub status: Status,
    pub steps: Steps,
    pub events: Vec<RunEvent>,
}

/// Shows a run in the terminal until the user quits. Prints it once if the output is not a terminal.
///
/// # Errors
/// If the run cannot be reached, if the terminal cannot be drawn on, or if `out` cannot be written.
pub fn run(run: &str, out: &mut dyn Write) -> Result<()> {
    let mut source = Source::open(run)?;
    let first = source.look()?;
    if !std::io::stdout().is_terminal() {
        return Ok(out.write_all(view::text(&first).as_bytes())?);
    }
    let (sender, news) = mpsc::channel();
    // Not joined at the end, so quitting does not wait for a server that does not answer.
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || ask(source, &sender))?;
    let mut terminal = ratatui::try_init().context("cannot draw on the terminal")?;
    let drawn = show(&mut terminal, first, &news);
    ratatui::restore();
    drawn
}

/// Queries the run once per second until the receiver is gone.
fn ask(mut source: Source, sender: &Sender<Result<Snapshot>>) {
    loop {
        thread::sleep(ASK);
        if sender.send(source.look()).is_err() {
            return;
        }
    }
}

/// Draws until the user quits. If the run no longer answers, shows its last state and the reason.
fn show(
    terminal: &mut DefaultTerminal,
    mut snapshot: Snapshot,
    news: &Receiver<Result<Snapshot>>,
) -> Result<()> {
    let mut problem = None;
    loop {
        for looked in news.try_iter() {
            match looked {
                Ok(new) => (snapshot, problem) = (new, None),
                // The process has reported how it ended, and is gone.
                Err(_) if snapshot.status.run.state.is_ended() => {}
                Err(error) => problem = Some(format!("{error:#}")),
            }
        }
        terminal.draw(|frame| view::draw(frame, &snapshot, problem.as_deref()))?;
        if event::poll(TICK)? && leaves(&event::read()?) {
            return Ok(());
        }
    }
}

/// Whether the event is `q`, Esc, or Ctrl-C, which the terminal passes on as a key.
fn leaves(event: &Event) -> bool {
    event
        .as_key_press_event()
        .is_some_and(|key| match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
            _ => false,
        })
}

/// Where the data of the run comes from.
enum Source {
    Folder(Box<RunView>),
    Server(Client),
}

impl Source {
    fn open(run: &str) -> Result<Self> {
        if run.contains("://") {
            return Ok(Self::Server(Client::new(run, serve::token()?)?));
        }
        let folder = PathBuf::from(run);
        if !RunFolder::holds_a_run(&folder) {
            return Err(anyhow!("there is no run in {}", folder.display())).usage();
        }
        Ok(Self::Folder(Box::new(RunView::new(&folder))))
    }

    fn look(&mut self) -> Result<Snapshot> {
        match self {
            Self::Folder(view) => {
                view.refresh();
                let mut status = Status::new(view, None);
                // Only the run's process knows what it is doing.
                let is_live = !status.run.state.is_ended();
                if let Some(live) = is_live.then(|| ctl::status(view.folder())).flatten() {
                    status.run.state = live.state;
                    (status.run.activity, status.run.seconds_left) =
                        (live.activity, live.seconds_left);
                }
                Ok(Snapshot {
                    status,
                    steps: view.steps(),
                    events: RunEvent::all(view),
                })
            }
            Self::Server(client) => Ok(Snapshot {
                events: client.get("/api/events", &[])?,
                steps: client.get("/api/steps", &[])?,
                // Query the status last: a process that ends exits once its watchers know how it ended.
                status: client.get(
                    "/api/status",
                    &[("watcher", &format!("watch-{}", std::process::id()))],
                )?,
            }),
        }
    }
}
