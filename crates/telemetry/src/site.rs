//! What the server serves: the run that this process trains, or the runs in a folder.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ddk_run::{RunFolder, RunView, control::Control};
use parking_lot::Mutex;
use smart_default::SmartDefault;
use tokio::sync::watch;

use crate::{
    Board, Recorder,
    api::{Lanes, RunEntry, Status},
    timeline::Timeline,
};

/// Files are read again if the last read is older than this.
const FRESH: Duration = Duration::from_millis(300);
/// A client that asked within this time is expected to ask again.
const POLLED: Duration = Duration::from_secs(3);
/// Maximum depth of a run below the served folder.
const DEPTH: usize = 4;

/// What a server serves, and to whom.
pub struct Site {
    pub(crate) recorder: Option<Recorder>,
    pub(crate) runs: Runs,
    /// The token that every client must have.
    pub token: Option<String>,
    /// Carries out commands, if a token is set.
    pub control: Option<Arc<dyn Control>>,
    /// Limits on what clients may use.
    pub limits: Limits,
}

/// Limits on what clients may use.
#[derive(Debug, Clone, Copy, SmartDefault)]
pub struct Limits {
    /// Maximum number of simultaneous connections with access; further ones wait.
    #[default(64)]
    pub connections: usize,
    /// Maximum number of simultaneous connections that have not shown access yet, counted separately for this machine
    /// and for all others. The server closes the oldest to admit the next.
    #[default(64)]
    pub strangers: usize,
    /// Maximum time for a whole request to arrive, and between two requests.
    #[default(Duration::from_secs(30))]
    pub header_timeout: Duration,
    /// Maximum time until an answer begins.
    #[default(Duration::from_secs(30))]
    pub answer_timeout: Duration,
    /// Maximum size of a request in bytes.
    #[default(16 << 10)]
    pub request_bytes: usize,
}

impl Site {
    /// Serves the run that this process trains in `folder`, with its metrics.
    pub fn of_run(recorder: Recorder, folder: &Path) -> Self {
        let source = Source::new(folder, Some(Arc::clone(&recorder.board)));
        Self::new(Some(recorder), Runs::One(Arc::new(source)))
    }

    /// Answers for the health of a rank whose run is served by rank 0.
    pub fn of_rank(recorder: Recorder) -> Self {
        Self::new(Some(recorder), Runs::Elsewhere)
    }

    /// Serves all runs below `folder`, whichever process trains them.
    pub fn of_runs(folder: &Path) -> Self {
        let (root, open) = (folder.to_owned(), Mutex::default());
        Self::new(None, Runs::Many(Folder { root, open }))
    }

    fn new(recorder: Option<Recorder>, runs: Runs) -> Self {
        Self {
            recorder,
            runs,
            token: None,
            control: None,
            limits: Limits::default(),
        }
    }

    /// Waits until every watcher has been told how the run ended.
    pub(crate) async fn farewell(&self) {
        let Runs::One(source) = &self.runs else {
            return;
        };
        // The next look reads the files again.
        source.view.lock().1 = None;
        let is_recent = |watcher: &Watcher| watcher.asked.elapsed() < POLLED;
        if source.watchers.lock().values().any(is_recent) {
            let _ = source.all_told.subscribe().wait_for(|told| *told).await;
        }
    }
}

/// The runs of a site.
#[derive(Debug)]
pub(crate) enum Runs {
    One(Arc<Source>),
    Many(Folder),
    /// None: rank 0 of the run serves it.
    Elsewhere,
}

impl Runs {
    /// Finds a run by its name. If the site has only one run, `name` must be `None`.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<Arc<Source>> {
        match self {
            Self::One(source) => name.is_none().then(|| Arc::clone(source)),
            Self::Many(folder) => folder.find(name?),
            Self::Elsewhere => None,
        }
    }
}

/// A folder of runs.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    open: Mutex<HashMap<PathBuf, Arc<Source>>>,
}

impl Folder {
    /// Lists every run by its name, which is its path below the root. The server looks up a requested name in this list
    /// and never turns it into a path. It does not follow links. So it never reads anything outside the root.
    fn list(&self) -> BTreeMap<String, PathBuf> {
        let mut runs = BTreeMap::new();
        gather(&self.root, "", DEPTH, &mut runs);
        runs
    }

    fn find(&self, name: &str) -> Option<Arc<Source>> {
        self.list().remove(name).map(|path| self.source(path))
    }

    /// Every run with its status.
    pub(crate) fn all(&self) -> Vec<RunEntry> {
        let runs = self.list();
        // Forget what was read of runs that are gone. The data of the others, a few megabytes per run at most, stays.
        let paths: HashSet<&PathBuf> = runs.values().collect();
        self.open.lock().retain(|path, _| paths.contains(path));
        let entry = |(name, path): (&String, &PathBuf)| RunEntry {
            name: name.clone(),
            status: self.source(path.clone()).status(),
        };
        runs.iter().map(entry).collect()
    }

    fn source(&self, path: PathBuf) -> Arc<Source> {
        let mut open = self.open.lock();
        let source = open.entry(path);
        Arc::clone(source.or_insert_with_key(|path| Arc::new(Source::new(path, None))))
    }
}

fn gather(folder: &Path, prefix: &str, depth: usize, runs: &mut BTreeMap<String, PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !is_folder || name.starts_with('.') {
            continue;
        }
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if RunFolder::holds_a_run(&path) {
            runs.insert(name, path);
        } else if depth > 1 {
            gather(&path, &format!("{name}/"), depth - 1, runs);
        }
    }
}

/// A run whose status and data can be requested. The data behind its locks is consistent after every statement, so a
/// thread that panicked has at worst left old values.
#[derive(Debug)]
pub(crate) struct Source {
    /// Clients that recently requested its status, by the name that each gave.
    watchers: Mutex<HashMap<String, Watcher>>,
    /// Whether all watchers have been told that the run has ended.
    all_told: watch::Sender<bool>,
    view: Mutex<(RunView, Option<Instant>)>,
    board: Option<Arc<Board>>,
    timeline: Mutex<Timeline>,
}

/// A client that polls the status of a run.
#[derive(Debug)]
struct Watcher {
    asked: Instant,
    /// Whether the answer said that the run has ended.
    told: bool,
}

impl Source {
    fn new(folder: &Path, board: Option<Arc<Board>>) -> Self {
        Self {
            watchers: Mutex::default(),
            all_told: watch::Sender::new(false),
            view: Mutex::new((RunView::new(folder), None)),
            board,
            timeline: Mutex::default(),
        }
    }

    /// Passes the view of its files to `ask`. Reads what is new first, so never call this where a wait matters.
    pub(crate) fn look<T>(&self, ask: impl FnOnce(&RunView) -> T) -> T {
        let mut guard = self.view.lock();
        let (view, read) = &mut *guard;
        if read.is_none_or(|read| read.elapsed() >= FRESH) {
            view.refresh();
            *read = Some(Instant::now());
        }
        ask(view)
    }

    /// The status of the run, for a list.
    fn status(&self) -> Status {
        self.look(|view| Status::new(view, self.board.as_deref()))
    }

    /// The status of the run, for a watcher.
    pub(crate) fn watched_status(&self, watcher: &str) -> Status {
        let status = self.status();
        let mut watchers = self.watchers.lock();
        watchers.retain(|_, watcher| watcher.asked.elapsed() < POLLED);
        let now = Watcher {
            asked: Instant::now(),
            told: status.run.state.is_ended(),
        };
        // Cut long names, so that they cannot fill the memory.
        watchers.insert(watcher.chars().take(64).collect(), now);
        let all_told = watchers.values().all(|watcher| watcher.told);
        self.all_told.send_replace(all_told);
        status
    }

    /// What the workers did, from sample number `from` on.
    pub(crate) fn lanes(&self, from: u64) -> Lanes {
        let timeline = self.timeline.lock();
        let board = self.board.as_ref();
        board.map_or_else(Lanes::default, |_| timeline.from(from))
    }

    /// Takes a sample of the workers. Call this once per [`crate::timeline::SAMPLE`].
    pub(crate) fn sample(&self) {
        if let Some(board) = &self.board {
            self.timeline.lock().sample(&board.workers());
        }
    }
}
