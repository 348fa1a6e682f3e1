//! The progress of one phase, which can be read at any time.

use std::{fmt, time::Duration};

use ddk_run::view::Progress;
use parking_lot::Mutex;

use crate::Clock;

/// A part of the estimate for a phase that has taken longer than expected: as long as a quarter of the time so far.
const OVERDUE: f64 = 0.25;

/// Reads how many are done, and how many there are.
pub(crate) type Source = Box<dyn Fn() -> (u64, u64) + Send + Sync>;

/// The progress of a phase, which can be read at any time.
pub(crate) struct Gauge {
    pub(crate) phase: String,
    unit: &'static str,
    clock: Clock,
    began: Duration,
    /// The worker that the phase belongs to.
    pub(crate) worker: Option<String>,
    /// Whether it measures the student, which the time of a run depends on.
    pub(crate) is_evaluation: bool,
    seen: Mutex<Seen>,
    source: Option<Source>,
}

impl fmt::Debug for Gauge {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Gauge({})", self.progress())
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// What was done at the first report.
    first: Option<u64>,
    done: u64,
    total: u64,
    /// When `done` changed last.
    at: Duration,
    /// Seconds that the phase is expected to take.
    expected: Option<f64>,
}

impl Gauge {
    /// Begins a phase now.
    pub(crate) fn new(
        clock: Clock,
        phase: &str,
        unit: &'static str,
        source: Option<Source>,
    ) -> Self {
        Self {
            phase: phase.to_owned(),
            unit,
            began: clock.now(),
            clock,
            worker: None,
            is_evaluation: false,
            seen: Mutex::default(),
            source,
        }
    }

    /// Sets the seconds that the phase is expected to take.
    pub(crate) fn expect(&self, seconds: Option<f64>) {
        self.seen.lock().expected = seconds;
    }

    pub(crate) fn see(&self, done: u64, total: u64) {
        let mut seen = self.seen.lock();
        if seen.first.is_none() || done != seen.done {
            seen.at = self.clock.now();
        }
        seen.first.get_or_insert(done);
        (seen.done, seen.total) = (done, total);
    }

    pub(crate) fn progress(&self) -> Progress {
        if let Some(source) = &self.source {
            let (done, total) = source();
            self.see(done, total);
        }
        let seen = self.seen.lock();
        let now = self.clock.now();
        let since = |from: Duration| now.saturating_sub(from).as_secs_f64();
        let seconds = since(self.began);
        let left = seen.total.saturating_sub(seen.done) as f64;
        // What was done before this process started says nothing about the pace.
        let made = seen.done.saturating_sub(seen.first.unwrap_or(seen.done)) as f64;
        let seconds_left = if made > 0.0 && seen.total > 0 {
            let each = seen.at.saturating_sub(self.began).as_secs_f64() / made;
            // The one in progress may take longer than the others did, which says nothing about the rest.
            let rest = (left - 1.0).max(0.0) * each;
            Some((left * each - since(seen.at)).max(rest))
        } else {
            let expected = seen.expected;
            expected.map(|expected| (expected - seconds).max(OVERDUE * seconds))
        };
        Progress {
            phase: self.phase.clone(),
            unit: self.unit.to_owned(),
            done: seen.done,
            total: seen.total,
            seconds,
            seconds_left,
        }
    }
}
