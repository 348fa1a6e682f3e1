//! The current state of each worker, and how it has spent its time.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use ddk_run::view::State;

use crate::{
    api::{QueueStatus, WorkerStatus},
    clock::Clock,
    metrics,
    progress::{Meter, Progress},
    samples::Samples,
};

const STOPPED: u8 = 0;
const COMPUTING: u8 = 1;
const INPUT_WAIT: u8 = 2;
const OUTPUT_WAIT: u8 = 3;
/// The names of the states by number: in metrics, and in the API.
const NAMES: [[&str; 2]; 4] = [
    ["stopped", "stopped"],
    ["computing", "busy"],
    ["input_wait", "waiting_for_input"],
    ["output_wait", "waiting_for_output"],
];

/// What workers publish. Reading it never involves a worker.
///
/// A worker that waits, for input or to pass on its output, is healthy. Only a worker that computes beyond the limit is
/// not.
#[derive(Debug)]
pub struct Board {
    clock: Clock,
    compute_limit: Duration,
    workers: Mutex<Vec<Worker>>,
    queues: Mutex<Vec<Arc<Probe>>>,
    state: Mutex<State>,
}

/// A queue whose length can be read.
struct Probe {
    name: String,
    capacity: usize,
    length: Box<dyn Fn() -> usize + Send + Sync>,
}

impl fmt::Debug for Probe {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Probe({})", self.name)
    }
}

/// A queue's line on the board. Dropping this removes the line, so that the board keeps no queue alive.
#[derive(Debug)]
pub struct ShownQueue {
    board: Arc<Board>,
    probe: Arc<Probe>,
}

impl Drop for ShownQueue {
    fn drop(&mut self) {
        self.board
            .queue_list()
            .retain(|probe| !Arc::ptr_eq(probe, &self.probe));
    }
}

/// A worker's line on the board, which the worker itself writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Worker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    clock: Clock,
    state: AtomicU8,
    /// When the state was entered, nanoseconds of the clock.
    since: AtomicU64,
    /// Nanoseconds in each state, by its number.
    spent: [AtomicU64; 4],
    restarts: AtomicU64,
    /// The progress of its current long phase.
    progress: Mutex<Option<Progress>>,
}

/// How a worker has spent its time, in seconds, including the current state.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Computing.
    pub busy: f64,
    /// Waiting for input.
    pub input_wait: f64,
    /// Waiting to pass on its output.
    pub output_wait: f64,
}

impl Board {
    /// Creates a board that uses the system's monotonic clock. A worker that computes for longer than `compute_limit`
    /// without a pause is unhealthy.
    pub fn new(compute_limit: Duration) -> Arc<Self> {
        Self::with_clock(compute_limit, Clock::system())
    }

    pub(crate) fn with_clock(compute_limit: Duration, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            clock,
            compute_limit,
            workers: Mutex::new(Vec::new()),
            queues: Mutex::new(Vec::new()),
            state: Mutex::new(State::Starting),
        })
    }

    /// Returns the line of a worker. A restarted worker keeps its line.
    pub fn worker(&self, name: &str) -> Worker {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = workers.iter().find(|worker| worker.inner.name == name) {
            return worker.clone();
        }
        let worker = Worker {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                since: AtomicU64::new(self.clock.now().as_nanos() as u64),
                clock: self.clock.clone(),
                state: AtomicU8::new(STOPPED),
                spent: Default::default(),
                restarts: AtomicU64::new(0),
                progress: Mutex::default(),
            }),
        };
        workers.push(worker.clone());
        // Start at 0, so that the first restart is an increase.
        metrics::WORKER_RESTARTS.with(&[name]).increment(0);
        worker
    }

    /// Puts a queue on the board, which calls `length` whenever its queues are read.
    pub fn queue(
        self: &Arc<Self>,
        name: String,
        capacity: usize,
        length: impl Fn() -> usize + Send + Sync + 'static,
    ) -> ShownQueue {
        let probe = Arc::new(Probe {
            name,
            capacity,
            length: Box::new(length),
        });
        self.queue_list().push(Arc::clone(&probe));
        ShownQueue {
            board: Arc::clone(self),
            probe,
        }
    }

    fn queue_list(&self) -> MutexGuard<'_, Vec<Arc<Probe>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current status of every worker.
    pub(crate) fn worker_statuses(&self) -> Vec<WorkerStatus> {
        self.workers().iter().map(Worker::status).collect()
    }

    /// Returns the current status of every queue.
    pub(crate) fn queue_statuses(&self) -> Vec<QueueStatus> {
        let queues = self.queue_list();
        let look = |probe: &Arc<Probe>| QueueStatus {
            name: probe.name.clone(),
            length: (probe.length)(),
            capacity: probe.capacity,
        };
        queues.iter().map(look).collect()
    }

    /// Sets whether the run trains (models are loaded, workers are up). A run that stops training is recovering until
    /// it ends.
    pub fn set_ready(&self, ready: bool) {
        let mut state = self.lock_state();
        *state = match (ready, *state) {
            (true, _) => State::Running,
            (false, State::Starting) => State::Starting,
            (false, _) => State::Recovering,
        };
    }

    /// Sets the state of the run.
    pub fn set_state(&self, state: State) {
        *self.lock_state() = state;
    }

    /// Returns the state of the run.
    pub fn state(&self) -> State {
        *self.lock_state()
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the run trains, or would if it were not paused.
    pub fn is_ready(&self) -> bool {
        matches!(self.state(), State::Running | State::Paused)
    }

    /// Returns the workers that have computed beyond the limit, each with the time. Empty if all workers are healthy.
    pub fn unhealthy(&self) -> Vec<(String, Duration)> {
        let now = self.clock.now();
        self.workers()
            .iter()
            .filter(|worker| worker.inner.state.load(Ordering::Acquire) == COMPUTING)
            .map(|worker| {
                let since = Duration::from_nanos(worker.inner.since.load(Ordering::Acquire));
                (worker.inner.name.clone(), now.saturating_sub(since))
            })
            .filter(|(_, computing)| *computing > self.compute_limit)
            .collect()
    }

    /// Samples the times, the current state and the heartbeat age of all workers.
    pub(crate) fn sample(&self, samples: &mut Samples<'_>) {
        let workers = self.workers();
        let totals: Vec<(&str, Totals)> = workers
            .iter()
            .map(|worker| (worker.inner.name.as_str(), worker.totals()))
            .collect();
        let each = |of: fn(&Totals) -> f64| {
            let workers = totals.iter();
            workers.map(move |(name, spent)| (vec![*name], of(spent)))
        };
        samples.add(&metrics::WORKER_BUSY, each(|spent| spent.busy));
        samples.add(&metrics::WORKER_INPUT_WAIT, each(|spent| spent.input_wait));
        samples.add(
            &metrics::WORKER_OUTPUT_WAIT,
            each(|spent| spent.output_wait),
        );
        let values = workers.iter().flat_map(|worker| {
            let now = worker.inner.state.load(Ordering::Acquire);
            let states = NAMES.iter().zip(0..);
            states.map(move |([state, _], number)| {
                let is = f64::from(u8::from(number == now));
                (vec![worker.inner.name.as_str(), state], is)
            })
        });
        samples.add(&metrics::WORKER_STATE, values);
        let now = self.clock.now();
        let ages = workers.iter().map(|worker| {
            let since = Duration::from_nanos(worker.inner.since.load(Ordering::Acquire));
            let age = now.saturating_sub(since).as_secs_f64();
            (vec![worker.inner.name.as_str()], age)
        });
        samples.add(&metrics::WORKER_HEARTBEAT, ages);
    }

    pub(crate) fn workers(&self) -> Vec<Worker> {
        self.workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Worker {
    /// Reports that it computes.
    pub fn computing(&self) {
        self.enter(COMPUTING);
    }

    /// Reports that it waits for input.
    pub fn waiting_for_input(&self) {
        self.enter(INPUT_WAIT);
    }

    /// Reports that it waits to pass on its output.
    pub fn waiting_for_output(&self) {
        self.enter(OUTPUT_WAIT);
    }

    /// Reports that it has ended.
    pub fn stopped(&self) {
        self.enter(STOPPED);
    }

    fn enter(&self, state: u8) {
        let now = self.inner.clock.now().as_nanos() as u64;
        let since = self.inner.since.swap(now, Ordering::AcqRel);
        let old = self.inner.state.swap(state, Ordering::AcqRel);
        self.inner.spent[usize::from(old)].fetch_add(now.saturating_sub(since), Ordering::Relaxed);
    }

    /// Starts to measure a long phase. `unit` names what is counted, in the plural.
    pub fn meter(&self, phase: &str, unit: &'static str) -> Meter {
        Meter::start(phase, unit, &self.inner.clock).of(self)
    }

    pub(crate) fn set_progress(&self, progress: Option<Progress>) {
        let mut shown = self
            .inner
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *shown = progress;
    }

    /// Counts a restart after a failure.
    pub fn restarted(&self) {
        self.inner.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    fn status(&self) -> WorkerStatus {
        let now = self.inner.clock.now().as_nanos() as u64;
        let since = self.inner.since.load(Ordering::Acquire);
        let [_, state] = NAMES[usize::from(self.inner.state.load(Ordering::Acquire))];
        let totals = self.totals();
        WorkerStatus {
            name: self.inner.name.clone(),
            state: state.to_owned(),
            state_seconds: now.saturating_sub(since) as f64 / 1e9,
            busy_seconds: totals.busy,
            input_wait_seconds: totals.input_wait,
            output_wait_seconds: totals.output_wait,
            restarts: self.inner.restarts.load(Ordering::Relaxed),
            progress: self
                .inner
                .progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// How it has spent its time.
    pub fn totals(&self) -> Totals {
        let now = self.inner.clock.now().as_nanos() as u64;
        let state = self.inner.state.load(Ordering::Acquire);
        let current = now.saturating_sub(self.inner.since.load(Ordering::Acquire));
        let seconds = |of: u8| {
            let spent = self.inner.spent[usize::from(of)].load(Ordering::Relaxed);
            (spent + if state == of { current } else { 0 }) as f64 / 1e9
        };
        Totals {
            busy: seconds(COMPUTING),
            input_wait: seconds(INPUT_WAIT),
            output_wait: seconds(OUTPUT_WAIT),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn board() -> (Arc<Board>, Arc<AtomicU64>) {
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = seconds.clone();
        let board = Board::with_clock(
            Duration::from_secs(10),
            Clock::new(move || Duration::from_secs(clock.load(Ordering::Relaxed))),
        );
        (board, seconds)
    }

    #[test]
    fn time_is_counted_by_what_the_worker_does() {
        let (board, seconds) = board();
        let worker = board.worker("teacher-0");
        let advance = |by| {
            seconds.fetch_add(by, Ordering::Relaxed);
        };
        worker.waiting_for_input();
        advance(2);
        worker.computing();
        advance(5);
        worker.waiting_for_output();
        advance(3);
        assert_eq!(
            worker.totals(),
            Totals {
                busy: 5.0,
                input_wait: 2.0,
                output_wait: 3.0
            }
        );
        // A restarted worker keeps the line of its name.
        board.worker("teacher-0").computing();
        advance(1);
        assert_eq!(worker.totals().busy, 6.0);
    }

    #[test]
    fn what_is_published_is_monotonic_and_names_the_state() {
        let (board, seconds) = board();
        board.worker("student").computing();
        seconds.store(4, Ordering::Relaxed);
        let mut samples = Samples::new(String::new(), "small");
        board.sample(&mut samples);
        let page = samples.into_page();
        for line in [
            "ddk_worker_busy_seconds_total{run=\"small\",worker=\"student\"} 4\n",
            "ddk_worker_input_wait_seconds_total{run=\"small\",worker=\"student\"} 0\n",
            "ddk_worker_state{run=\"small\",worker=\"student\",state=\"computing\"} 1\n",
            "ddk_worker_state{run=\"small\",worker=\"student\",state=\"output_wait\"} 0\n",
            "ddk_worker_heartbeat_age_seconds{run=\"small\",worker=\"student\"} 4\n",
        ] {
            assert!(page.contains(line), "{line} is not in\n{page}");
        }
    }

    #[test]
    fn only_computing_beyond_the_limit_is_sick() {
        let (board, seconds) = board();
        let (waiting, computing) = (board.worker("student"), board.worker("teacher-0"));
        waiting.waiting_for_input();
        computing.computing();
        seconds.store(10, Ordering::Relaxed);
        assert!(board.unhealthy().is_empty());
        seconds.store(11, Ordering::Relaxed);
        assert_eq!(
            board.unhealthy(),
            [("teacher-0".to_owned(), Duration::from_secs(11))]
        );
        computing.waiting_for_output();
        seconds.store(500, Ordering::Relaxed);
        assert!(board.unhealthy().is_empty());
    }

    #[test]
    fn a_queue_is_on_the_board_as_long_as_its_line() {
        let (board, _) = board();
        let length = Arc::new(AtomicU64::new(3));
        let seen = Arc::clone(&length);
        let line = board.queue("batcher to teacher-0".to_owned(), 4, move || {
            seen.load(Ordering::Relaxed) as usize
        });
        let [queue] = board.queue_statuses().try_into().unwrap();
        assert_eq!((queue.length, queue.capacity), (3, 4));
        drop(line);
        assert!(board.queue_statuses().is_empty());
        assert_eq!(Arc::strong_count(&length), 1);
    }
}
