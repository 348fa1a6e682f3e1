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

use anyhow::{Context, Result};
use ddk_run::{
    RunView,
    view::{Mixture, Steps},
};
use ddk_telemetry::api::{Event as RunEvent, Status};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyModifiers},
};

use crate::{client::Client, ctl, serve};
use ddk_jobs::hint::must_hold_a_run;

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
    /// The mean gap at each evaluation.
    pub gaps: Vec<f64>,
}

/// Which domains are visible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scroll {
    /// The first visible one.
    top: usize,
    /// How many fitted when they were last drawn.
    page: usize,
}

impl Scroll {
    /// Fits `rows` of `all` domains. Returns how many are above and below the visible ones.
    pub fn show(&mut self, rows: usize, all: usize) -> (usize, usize) {
        self.page = rows;
        self.top = self.top.min(all.saturating_sub(rows));
        (self.top, all.saturating_sub(self.top + rows))
    }

    /// Moves as the key says.
    fn press(&mut self, key: KeyCode) {
        let page = self.page.max(1);
        self.top = match key {
            KeyCode::Down | KeyCode::Char('j') => self.top.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.top.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.top.saturating_add(page),
            KeyCode::PageUp => self.top.saturating_sub(page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => usize::MAX,
            _ => self.top,
        };
    }
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
    let (mut problem, mut scroll) = (None, Scroll::default());
    loop {
        for looked in news.try_iter() {
            match looked {
                Ok(new) => (snapshot, problem) = (new, None),
                // The process has reported how it ended, and is gone.
                Err(_) if snapshot.status.run.state.is_ended() => {}
                Err(error) => problem = Some(format!("{error:#}")),
            }
        }
        terminal.draw(|frame| view::draw(frame, &snapshot, problem.as_deref(), &mut scroll))?;
        if event::poll(TICK)? {
            let event = event::read()?;
            if leaves(&event) {
                return Ok(());
            }
            if let Some(key) = event.as_key_press_event() {
                scroll.press(key.code);
            }
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
    Server(Box<Server>),
}

/// A server, and what was read from it.
struct Server {
    client: Client,
    gaps: Vec<f64>,
    /// The revision of the mixtures that the gaps are from.
    read: Option<u64>,
    /// The last revision that the server told.
    told: u64,
}

impl Source {
    fn open(run: &str) -> Result<Self> {
        if run.contains("://") {
            return Ok(Self::Server(Box::new(Server {
                client: Client::new(run, serve::token()?)?,
                gaps: Vec::new(),
                read: None,
                told: 0,
            })));
        }
        let folder = PathBuf::from(run);
        must_hold_a_run(&folder)?;
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
                    gaps: view.mixture().mean_gaps(),
                })
            }
            Self::Server(server) => server.look(),
        }
    }
}

impl Server {
    fn look(&mut self) -> Result<Snapshot> {
        let client = &mut self.client;
        let events = client.get("/api/events", &[])?;
        let steps = client.get("/api/steps", &[])?;
        // The mixtures are many and change rarely.
        if self.read != Some(self.told) {
            self.gaps = client.get::<Mixture>("/api/mixture", &[])?.mean_gaps();
            self.read = Some(self.told);
        }
        // Query the status last: a process that ends exits once its watchers know how it ended.
        let watcher = format!("watch-{}", std::process::id());
        let status: Status = client.get("/api/status", &[("watcher", &watcher)])?;
        self.told = status.run.revisions.mixture;
        Ok(Snapshot {
            status,
            steps,
            events,
            gaps: self.gaps.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_scroll_and_stay_inside() {
        let mut scroll = Scroll::default();
        assert_eq!(scroll.show(5, 12), (0, 7));
        let mut after = |key: KeyCode| {
            scroll.press(key);
            scroll.show(5, 12)
        };
        assert_eq!(after(KeyCode::Up), (0, 7));
        assert_eq!(after(KeyCode::Char('j')), (1, 6));
        assert_eq!(after(KeyCode::PageDown), (6, 1));
        assert_eq!(after(KeyCode::PageDown), (7, 0));
        assert_eq!(after(KeyCode::Down), (7, 0));
        assert_eq!(after(KeyCode::Char('k')), (6, 1));
        assert_eq!(after(KeyCode::PageUp), (1, 6));
        assert_eq!(after(KeyCode::End), (7, 0));
        assert_eq!(after(KeyCode::Home), (0, 7));
        // A taller terminal shows what was above.
        scroll.press(KeyCode::End);
        assert_eq!(scroll.show(20, 12), (0, 0));
    }
}
