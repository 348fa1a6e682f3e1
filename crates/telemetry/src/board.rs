//! The current state of each worker, and how it has spent its time.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use ddk_run::view::{RunStatus, State};
use parking_lot::Mutex;

use crate::{
    Activity, TRAINING,
    api::{QueueStatus, RankStatus, WorkerStatus},
    clock::Clock,
    gauge::Gauge,
    metrics,
    progress::Meter,
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
    queues: Mutex<Vec<Weak<ReadQueue>>>,
    ranks: Mutex<Vec<RankStatus>>,
    state: Mutex<State>,
    activity: Arc<Activity>,
}

/// Reads the status of a queue.
type ReadQueue = dyn Fn() -> QueueStatus + Send + Sync;

/// A queue's line on the board. Dropping this removes the line, so that the board keeps no queue alive.
pub type ShownQueue = Arc<ReadQueue>;

/// A worker's line on the board. Cheap to clone.
pub type Worker = Arc<Line>;

/// A line on the board, which its worker itself writes.
#[derive(Debug)]
pub struct Line {
    name: String,
    clock: Clock,
    state: AtomicU8,
    /// When the state was entered, nanoseconds of the clock.
    since: AtomicU64,
    /// Nanoseconds in each state, by its number.
    spent: [AtomicU64; 4],
    restarts: AtomicU64,
    /// The progress of its current long phase.
    pub(crate) progress: Mutex<Weak<Gauge>>,
    activity: Arc<Activity>,
}

impl Board {
    /// Creates a board that uses the system's monotonic clock. A worker that computes for longer than `compute_limit`
    /// without a pause is unhealthy.
    pub fn new(compute_limit: Duration) -> Arc<Self> {
        Self::with_activity(compute_limit, Activity::of_process())
    }

    pub(crate) fn with_activity(compute_limit: Duration, activity: Arc<Activity>) -> Arc<Self> {
        let clock = activity.clock().clone();
        Arc::new(Self {
            clock,
            compute_limit,
            workers: Mutex::new(Vec::new()),
            queues: Mutex::new(Vec::new()),
            ranks: Mutex::new(Vec::new()),
            state: Mutex::new(State::Starting),
            activity,
        })
    }

    /// Returns the line of a worker. A restarted worker keeps its line.
    pub fn worker(&self, name: &str) -> Worker {
        let mut workers = self.workers.lock();
        if let Some(worker) = workers.iter().find(|worker| worker.name == name) {
            return worker.clone();
        }
        let worker = Arc::new(Line {
            name: name.to_owned(),
            since: AtomicU64::new(self.clock.now().as_nanos() as u64),
            clock: self.clock.clone(),
            state: AtomicU8::new(STOPPED),
            spent: Default::default(),
            restarts: AtomicU64::new(0),
            progress: Mutex::default(),
            activity: Arc::clone(&self.activity),
        });
        workers.push(worker.clone());
        // Start at 0, so that the first restart is an increase.
        metrics::WORKER_RESTARTS.with(&[name]).increment(0);
        worker
    }

    /// Puts a queue on the board, which calls `length` whenever its queues are read.
    pub fn queue(
        &self,
        name: String,
        capacity: usize,
        length: impl Fn() -> usize + Send + Sync + 'static,
    ) -> ShownQueue {
        let shown: ShownQueue = Arc::new(move || QueueStatus {
            name: name.clone(),
            length: length(),
            capacity,
        });
        self.queues.lock().push(Arc::downgrade(&shown));
        shown
    }

    /// Returns the current status of every worker.
    pub(crate) fn worker_statuses(&self) -> Vec<WorkerStatus> {
        let workers = self.workers();
        workers.iter().map(|worker| worker.status()).collect()
    }

    /// Returns the current status of every queue.
    pub(crate) fn queue_statuses(&self) -> Vec<QueueStatus> {
        let mut queues = self.queues.lock();
        queues.retain(|queue| queue.strong_count() > 0);
        let shown = queues.iter().filter_map(Weak::upgrade);
        shown.map(|queue| queue()).collect()
    }

    /// Sets how each rank spent its time in the last step.
    pub fn set_ranks(&self, ranks: Vec<RankStatus>) {
        *self.ranks.lock() = ranks;
    }

    /// Returns how each rank spent its time in the last step; empty if there is only one.
    pub fn ranks(&self) -> Vec<RankStatus> {
        self.ranks.lock().clone()
    }

    /// Sets whether the run trains (models are loaded, workers are up). A run that stops training is recovering until
    /// it ends.
    pub fn set_ready(&self, ready: bool) {
        let mut state = self.state.lock();
        *state = match (ready, *state) {
            (true, _) => State::Running,
            (false, State::Starting) => State::Starting,
            (false, _) => State::Recovering,
        };
        self.show(*state);
    }

    /// Sets the state of the run.
    pub fn set_state(&self, state: State) {
        *self.state.lock() = state;
        self.show(state);
    }

    /// Shows the phase that a state implies. The other states have phases of their own.
    fn show(&self, state: State) {
        match state {
            State::Running => self.activity.begin(TRAINING),
            State::Paused => self.activity.begin("paused"),
            State::Recovering => self.activity.begin("going back to the last checkpoint"),
            State::Starting => self.activity.end_course(),
            State::Ending => self.activity.end(),
            State::Finished | State::Stopped | State::Failed => {
                self.activity.rest();
                self.activity.end_course();
            }
        }
    }

    /// What the process is doing.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Adds to a run's status what only its process knows.
    pub fn complete(&self, status: &mut RunStatus) {
        if status.state.is_ended() {
            return;
        }
        status.activity = self.activity.progress();
        status.seconds_left = self.activity.seconds_left();
    }

    /// Returns the state of the run.
    pub fn state(&self) -> State {
        *self.state.lock()
    }

    /// Whether the run trains, or would if it were not paused.
    pub fn is_ready(&self) -> bool {
        matches!(self.state(), State::Running | State::Paused)
    }

    /// Returns the workers that have computed beyond the limit, each with the time. Empty if all workers are healthy.
    pub fn unhealthy(&self) -> Vec<(String, Duration)> {
        let workers = self.workers().into_iter();
        workers
            .filter(|worker| worker.state.load(Ordering::Acquire) == COMPUTING)
            .map(|worker| (worker.name.clone(), Duration::from_nanos(worker.age())))
            .filter(|(_, computing)| *computing > self.compute_limit)
            .collect()
    }

    /// Samples the times, the current state and the heartbeat age of all workers.
    pub(crate) fn sample(&self, samples: &mut Samples<'_>) {
        let workers = self.workers();
        let totals: Vec<[f64; 3]> = workers.iter().map(|worker| worker.totals()).collect();
        let mut add = |metric, index: usize| {
            let spent = workers.iter().zip(&totals);
            let spent = spent.map(|(worker, spent)| (vec![worker.name()], spent[index]));
            samples.add(metric, spent);
        };
        add(&metrics::WORKER_BUSY, 0);
        add(&metrics::WORKER_INPUT_WAIT, 1);
        add(&metrics::WORKER_OUTPUT_WAIT, 2);
        let values = workers.iter().flat_map(|worker| {
            let now = worker.state.load(Ordering::Acquire);
            let states = NAMES.iter().zip(0..);
            states.map(move |([state, _], number)| {
                let is = f64::from(u8::from(number == now));
                (vec![worker.name(), state], is)
            })
        });
        samples.add(&metrics::WORKER_STATE, values);
        let ages = workers.iter().map(|worker| {
            let age = Duration::from_nanos(worker.age());
            (vec![worker.name()], age.as_secs_f64())
        });
        samples.add(&metrics::WORKER_HEARTBEAT, ages);
    }

    pub(crate) fn workers(&self) -> Vec<Worker> {
        self.workers.lock().clone()
    }
}

impl Line {
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
        let now = self.clock.now().as_nanos() as u64;
        let since = self.since.swap(now, Ordering::AcqRel);
        let old = self.state.swap(state, Ordering::AcqRel);
        self.spent[usize::from(old)].fetch_add(now.saturating_sub(since), Ordering::Relaxed);
    }

    /// Starts to measure a long phase. `unit` names what is counted, in the plural.
    pub fn meter(self: &Arc<Self>, phase: &str, unit: &'static str) -> Meter {
        Meter::of_worker(&self.activity, self, phase, unit, false)
    }

    /// Starts to measure an evaluation of the student, which is expected to take as long as the last one.
    pub fn evaluation(self: &Arc<Self>, phase: &str) -> Meter {
        let meter = Meter::of_worker(&self.activity, self, phase, "documents", true);
        meter.expecting(self.activity.evaluation_seconds())
    }

    /// Counts a restart after a failure.
    pub fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn status(&self) -> WorkerStatus {
        let [_, state] = NAMES[usize::from(self.state.load(Ordering::Acquire))];
        let [busy_seconds, input_wait_seconds, output_wait_seconds] = self.totals();
        WorkerStatus {
            name: self.name.clone(),
            state: state.to_owned(),
            state_seconds: self.age() as f64 / 1e9,
            busy_seconds,
            input_wait_seconds,
            output_wait_seconds,
            restarts: self.restarts.load(Ordering::Relaxed),
            progress: self.progress.lock().upgrade().map(|gauge| gauge.progress()),
        }
    }

    /// Nanoseconds in the current state.
    fn age(&self) -> u64 {
        let now = self.clock.now().as_nanos() as u64;
        now.saturating_sub(self.since.load(Ordering::Acquire))
    }

    /// The seconds that it has computed, waited for input, and waited to pass on its output, including the current
    /// state.
    pub(crate) fn totals(&self) -> [f64; 3] {
        let state = self.state.load(Ordering::Acquire);
        let current = self.age();
        [COMPUTING, INPUT_WAIT, OUTPUT_WAIT].map(|of| {
            let spent = self.spent[usize::from(of)].load(Ordering::Relaxed);
            (spent + if state == of { current } else { 0 }) as f64 / 1e9
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn board() -> (Arc<Board>, Arc<AtomicU64>) {
        let seconds = Arc::new(AtomicU64::new(0));
        let clock = seconds.clone();
        let clock = Clock::new(move || Duration::from_secs(clock.load(Ordering::Relaxed)));
        let activity = Arc::new(Activity::new(clock));
        let board = Board::with_activity(Duration::from_secs(10), activity);
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
        assert_eq!(worker.totals(), [5.0, 2.0, 3.0]);
        // A restarted worker keeps the line of its name.
        board.worker("teacher-0").computing();
        advance(1);
        assert_eq!(worker.totals()[0], 6.0);
    }

    #[test]
    fn what_is_published_is_monotonic_and_names_the_state() {
        let (board, seconds) = board();
        board.worker("student").computing();
        seconds.store(4, Ordering::Relaxed);
        let mut samples = Samples::new(String::new(), "small");
        board.sample(&mut samples);
        let page = samples.page;
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
