//! `ddk watch`: the essentials of a run in the terminal.
//!
//! Asking for the run and drawing it are two threads: a server that answers slowly never keeps a key from being heard.

mod view;

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use ddk_run::{RunFolder, RunView, view::Steps};
use ddk_telemetry::api::{Event as RunEvent, Status};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use crate::{cli, client::Client, serve};
use ddk_jobs::hint::Hint;

/// How often keys are looked for and the picture is drawn.
const TICK: Duration = Duration::from_millis(100);
/// How often the run is asked.
const ASK: Duration = Duration::from_secs(1);

/// What is shown.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub status: Status,
    pub steps: Steps,
    pub events: Vec<RunEvent>,
}

/// Shows a run in the terminal until the user leaves. Prints it once if the output is not a terminal.
///
/// # Errors
/// If the run cannot be reached, if the terminal cannot be drawn on, or if `out` cannot be written.
pub fn run(args: &cli::Watch, out: &mut dyn Write) -> Result<()> {
    let mut source = Source::open(&args.run)?;
    let first = source.look()?;
    if !std::io::stdout().is_terminal() {
        return Ok(out.write_all(view::text(&first).as_bytes())?);
    }
    let (sender, news) = mpsc::channel();
    // Not waited for at the end: whoever leaves a server that does not answer leaves at once.
    thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || ask(source, &sender))?;
    let mut terminal = ratatui::try_init().context("cannot draw on the terminal")?;
    let drawn = show(first, &news, |snapshot, problem| {
        terminal.draw(|frame| view::draw(frame, snapshot, problem))?;
        Ok(())
    });
    ratatui::restore();
    drawn
}

/// Looks once a second until nobody listens.
fn ask(mut source: Source, sender: &Sender<Result<Snapshot>>) {
    loop {
        thread::sleep(ASK);
        if sender.send(source.look()).is_err() {
            return;
        }
    }
}

/// Draws until somebody leaves. A run that cannot be asked any more stays as it was seen last, and the reason is shown.
fn show(
    mut snapshot: Snapshot,
    news: &Receiver<Result<Snapshot>>,
    mut draw: impl FnMut(&Snapshot, Option<&str>) -> Result<()>,
) -> Result<()> {
    let mut problem = None;
    loop {
        for looked in news.try_iter() {
            match looked {
                Ok(new) => (snapshot, problem) = (new, None),
                // Its process has said how it ended, and is gone.
                Err(_) if snapshot.status.run.state.is_ended() => {}
                Err(error) => problem = Some(format!("{error:#}")),
            }
        }
        draw(&snapshot, problem.as_deref())?;
        if event::poll(TICK)? && leaves(&event::read()?) {
            return Ok(());
        }
    }
}

/// `q`, Esc, or Ctrl-C, which the terminal hands on as a key.
fn leaves(event: &Event) -> bool {
    let Event::Key(key) = event else {
        return false;
    };
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c') => control,
            _ => false,
        }
}

/// Where the run is looked at.
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
            return Err(no_run(&folder)).usage();
        }
        Ok(Self::Folder(Box::new(RunView::new(&folder))))
    }

    fn look(&mut self) -> Result<Snapshot> {
        match self {
            Self::Folder(view) => {
                view.refresh();
                Ok(Snapshot {
                    status: Status::of_folder(view),
                    steps: view.steps(),
                    events: RunEvent::all(view),
                })
            }
            Self::Server(client) => Ok(Snapshot {
                events: client.get("/api/events", &[])?,
                steps: client.get("/api/steps", &[])?,
                // Last: a process that ends waits until it has said how.
                status: client.get(
                    "/api/status",
                    &[("watcher", &format!("watch-{}", std::process::id()))],
                )?,
            }),
        }
    }
}

fn no_run(folder: &Path) -> anyhow::Error {
    anyhow!("there is no run in {}", folder.display())
}
