//! What the server serves: the run that this process trains, or the runs in a folder.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ddk_run::{RunFolder, RunView, control::Control};
use tokio::sync::watch;

use crate::{
    Board, Recorder,
    access::Access,
    api::{Lanes, Status},
    timeline::Timeline,
};

/// Files are read again if the last read is older than this.
const FRESH: Duration = Duration::from_millis(300);
/// A client that asked within this time is expected to ask again.
const POLLED: Duration = Duration::from_secs(3);
/// Maximum depth of a run below the served folder.
const DEPTH: usize = 4;

/// What a server serves, and to whom. A [`Recorder`] alone is a site of metrics and health.
#[derive(Debug)]
pub struct Site {
    pub(crate) recorder: Option<Recorder>,
    pub(crate) runs: Runs,
    pub(crate) token: Option<String>,
    pub(crate) control: Option<Arc<dyn Control>>,
    pub(crate) limits: Limits,
}

/// Limits on what clients may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of simultaneous connections with access; further ones wait.
    pub connections: usize,
    /// Maximum number of simultaneous connections that have not shown access yet, counted separately for this machine
    /// and for all others. The server closes the oldest to admit the next.
    pub strangers: usize,
    /// Maximum time for a whole request to arrive, and between two requests.
    pub header_timeout: Duration,
    /// Maximum time until an answer begins.
    pub answer_timeout: Duration,
    /// Maximum size of a request in bytes.
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            strangers: 64,
            header_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(30),
            request_bytes: 16 << 10,
        }
    }
}

impl From<Recorder> for Site {
    fn from(recorder: Recorder) -> Self {
        Self {
            recorder: Some(recorder),
            runs: Runs::None,
            token: None,
            control: None,
            limits: Limits::default(),
        }
    }
}

impl Site {
    /// Serves the run that this process trains in `folder`, with its metrics.
    pub fn of_run(recorder: Recorder, folder: &Path) -> Self {
        let board = Arc::clone(recorder.board());
        let source = Source::new(folder, Some(board));
        Self {
            runs: Runs::One(Arc::new(source)),
            ..Self::from(recorder)
        }
    }

    /// Serves all runs below `folder`, whichever process trains them.
    pub fn of_runs(folder: &Path) -> Self {
        Self {
            recorder: None,
            runs: Runs::Many(Folder {
                root: folder.to_owned(),
                open: Mutex::default(),
            }),
            token: None,
            control: None,
            limits: Limits::default(),
        }
    }

    /// Requires this token from every client.
    pub fn with_token(mut self, token: Option<&str>) -> Self {
        self.token = token.map(str::to_owned);
        self
    }

    /// Passes commands to `control`, if a token is set.
    pub fn with_control(mut self, control: Arc<dyn Control>) -> Self {
        self.control = Some(control);
        self
    }

    /// Sets other limits.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Waits until every watcher has been told how the run ended.
    pub(crate) async fn farewell(&self) {
        let Runs::One(source) = &self.runs else {
            return;
        };
        source.read_anew();
        let is_recent = |watcher: &Watcher| watcher.asked.elapsed() < POLLED;
        if lock(&source.watchers).values().any(is_recent) {
            let _ = source.all_told.subscribe().wait_for(|told| *told).await;
        }
    }

    pub(crate) fn access(&self, address: std::net::SocketAddr) -> Access {
        Access::new(address, self.token.as_deref(), self.limits.answer_timeout)
    }
}

/// The runs of a site.
#[derive(Debug)]
pub(crate) enum Runs {
    None,
    One(Arc<Source>),
    Many(Folder),
}

impl Runs {
    /// Finds a run by its name. If the site has only one run, `name` must be `None`.
    pub(crate) fn find(&self, name: Option<&str>) -> Option<Arc<Source>> {
        match self {
            Self::None => None,
            Self::One(source) => name.is_none().then(|| Arc::clone(source)),
            Self::Many(folder) => folder.find(name?),
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

    /// Every run with its source.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Source>)> {
        let runs = self.list();
        // Forget what was read of runs that are gone. The data of the others, a few megabytes per run at most, stays.
        let paths: HashSet<&PathBuf> = runs.values().collect();
        lock(&self.open).retain(|path, _| paths.contains(path));
        runs.iter()
            .map(|(name, path)| (name.clone(), self.source(path.clone())))
            .collect()
    }

    fn source(&self, path: PathBuf) -> Arc<Source> {
        let mut open = lock(&self.open);
        let source = open
            .entry(path.clone())
            .or_insert_with(|| Arc::new(Source::new(&path, None)));
        Arc::clone(source)
    }
}

fn gather(folder: &Path, prefix: &str, depth: usize, runs: &mut BTreeMap<String, PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
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

/// A run whose status and data can be requested.
#[derive(Debug)]
pub(crate) struct Source {
    /// Clients that recently requested its status, by the name that each gave.
    watchers: Mutex<HashMap<String, Watcher>>,
    /// Whether all watchers have been told that the run has ended.
    all_told: watch::Sender<bool>,
    view: Mutex<(RunView, Option<Instant>)>,
    board: Option<Arc<Board>>,
    timeline: Option<Mutex<Timeline>>,
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
            timeline: board.clone().map(Timeline::new).map(Mutex::new),
            board,
        }
    }

    /// Passes the view of its files to `ask`. Reads what is new first, so never call this where a wait matters.
    pub(crate) fn look<T>(&self, ask: impl FnOnce(&RunView) -> T) -> T {
        let mut guard = lock(&self.view);
        let (view, read) = &mut *guard;
        if read.is_none_or(|read| read.elapsed() >= FRESH) {
            view.refresh();
            *read = Some(Instant::now());
        }
        ask(view)
    }

    /// The status of the run, for a list.
    pub(crate) fn status(&self) -> Status {
        let board = self.board.as_ref();
        let process = board.map(|board| board.state());
        Status {
            run: self.look(|view| view.status(process)),
            workers: board.map_or_else(Vec::new, |board| board.worker_statuses()),
            queues: board.map_or_else(Vec::new, |board| board.queue_statuses()),
        }
    }

    /// The status of the run, for a watcher.
    pub(crate) fn watched_status(&self, watcher: String) -> Status {
        let status = self.status();
        let mut watchers = lock(&self.watchers);
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

    /// Makes the next [`Self::look`] read the files again.
    fn read_anew(&self) {
        lock(&self.view).1 = None;
    }

    /// What the workers did, from sample number `from` on.
    pub(crate) fn lanes(&self, from: u64) -> Lanes {
        let timeline = self.timeline.as_ref();
        timeline.map_or_else(Lanes::default, |timeline| lock(timeline).from(from))
    }

    /// Takes a sample of the workers. Call this once per [`crate::timeline::SAMPLE`].
    pub(crate) fn sample(&self) {
        if let Some(timeline) = &self.timeline {
            lock(timeline).sample();
        }
    }
}

/// Ignores poisoning: the data behind these locks is consistent after every statement, so a thread that panicked has
/// at worst left old values.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
