//! Performs requests at once, each on a thread of its own, and repeats those that an outage breaks.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use crate::{ServingError, client::Client, error::Failure};

/// Maximum time between two questions whether the caller still waits.
const SLICE: Duration = Duration::from_millis(100);
/// The pause after the first failure of an outage. Each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Maximum pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What a caller wants to know and to say while it waits. Called on the caller's thread only. By default, the caller
/// waits to the end and hears nothing.
pub trait Watch {
    /// Whether the caller no longer needs the result.
    fn is_over(&self) -> bool {
        false
    }
    /// A request got its hidden states.
    fn on_response(&self, seconds: f64, bytes: u64) {
        let _ = (seconds, bytes);
    }
    /// An attempt failed and will be repeated.
    fn on_retry(&self) {}
    /// The server is away: an attempt failed, and so did one that followed it. Called once per outage.
    fn on_away(&self, reason: &str) {
        let _ = reason;
    }
    /// The server answers again after [`Self::on_away`]. `seconds` is the length of the outage.
    fn on_back(&self, seconds: f64) {
        let _ = seconds;
    }
}

/// A request, which may be sent several times.
pub(crate) type Task<T> = Arc<dyn Fn(&Client) -> Result<T, Failure> + Send + Sync>;

/// The end of an attempt.
struct Report<T> {
    /// The task's position.
    index: usize,
    sent: Instant,
    result: Result<T, Failure>,
}

/// The time since the first failure that no answer followed.
struct Outage {
    since: Instant,
    /// When the last attempt failed that began within the outage. Failures of older attempts say nothing new.
    failed: Instant,
    /// Failures in a row.
    failures: u32,
    /// When the next attempts begin.
    next: Instant,
}

impl Outage {
    fn begin() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            failed: now,
            failures: 0,
            next: now,
        }
    }

    /// Counts the failure of an attempt that was sent at this time, and sets the time of the next one. Returns
    /// whether the server is away: a second attempt in a row failed.
    fn count(&mut self, sent: Instant, left: Duration) -> bool {
        if self.failures > 0 && sent <= self.failed {
            return false;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        self.failed = Instant::now();
        // The last attempt begins when the patience ends.
        self.next = self.failed + pause.min(LONGEST_PAUSE).min(left);
        self.failures == 2
    }
}

/// Performs all tasks at once. Returns their results in order, or `None` once the watch is over. Calls `answered` with
/// each result and the seconds that it took.
pub(crate) fn perform<T: Send + 'static>(
    client: &Arc<Client>,
    tasks: &[Task<T>],
    patience: Duration,
    watch: &dyn Watch,
    answered: impl Fn(&T, f64),
) -> Result<Option<Vec<T>>, ServingError> {
    // A thread whose answer comes too late finds the channel closed. So nobody waits for it, and no result is used
    // twice.
    let (sender, reports) = mpsc::channel();
    let mut results: Vec<Option<T>> = tasks.iter().map(|_| None).collect();
    let mut waiting: Vec<usize> = (0..tasks.len()).collect();
    let mut outage: Option<Outage> = None;
    while results.iter().any(Option::is_none) {
        if watch.is_over() {
            return Ok(None);
        }
        let pause = outage
            .as_ref()
            .map(|of| of.next.saturating_duration_since(Instant::now()));
        let pause = pause.filter(|pause| !pause.is_zero());
        if pause.is_none() {
            for index in waiting.drain(..) {
                start(client, &tasks[index], index, &sender);
            }
        }
        let Ok(report) = reports.recv_timeout(pause.unwrap_or(SLICE).min(SLICE)) else {
            continue;
        };
        match report.result {
            Ok(result) => {
                let ended = outage.take().filter(|outage| outage.failures > 1);
                if let Some(outage) = ended {
                    watch.on_back(outage.since.elapsed().as_secs_f64());
                }
                answered(&result, report.sent.elapsed().as_secs_f64());
                results[report.index] = Some(result);
            }
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Passing(reason)) => {
                let outage = outage.get_or_insert_with(Outage::begin);
                let elapsed = outage.since.elapsed();
                let left = patience.saturating_sub(elapsed);
                if left.is_zero() {
                    return Err(ServingError::Away {
                        address: client.http.base.clone(),
                        seconds: elapsed.as_secs_f64(),
                        reason,
                    });
                }
                waiting.push(report.index);
                watch.on_retry();
                if outage.count(report.sent, left) {
                    watch.on_away(&reason);
                }
            }
        }
    }
    Ok(Some(results.into_iter().flatten().collect()))
}

fn start<T: Send + 'static>(
    client: &Arc<Client>,
    task: &Task<T>,
    index: usize,
    sender: &mpsc::Sender<Report<T>>,
) {
    let sent = Instant::now();
    let report = move |result| Report {
        index,
        sent,
        result,
    };
    let (client, task, from_thread) = (client.clone(), task.clone(), sender.clone());
    let attempt = move || {
        let result = catch_unwind(AssertUnwindSafe(|| task(&client)));
        let panicked = |_| Err(Failure::Passing("the request's thread panicked".to_owned()));
        // The caller may have gone.
        let _ = from_thread.send(report(result.unwrap_or_else(panicked)));
    };
    let thread = thread::Builder::new().name("teacher request".to_owned());
    if let Err(error) = thread.spawn(attempt) {
        let _ = sender.send(report(Err(Failure::Passing(format!(
            "cannot start a thread: {error}"
        )))));
    }
}
