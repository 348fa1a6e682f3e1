//! The progress of long phases, such as an evaluation.

use std::{fmt, sync::OnceLock, time::Duration};

use ddk_run::view::duration;
use serde::{Deserialize, Serialize};

use crate::{Clock, Worker};

/// The progress of a long phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What the phase is: `first evaluation of the student`, …
    pub phase: String,
    /// What is counted: `documents`, …
    pub unit: String,
    /// How many are done.
    pub done: u64,
    /// How many there are.
    pub total: u64,
    /// Estimated from the pace so far; `null` until something is done.
    pub seconds_left: Option<f64>,
}

impl fmt::Display for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} of ", self.phase, self.done)?;
        write!(formatter, "{} {}", self.total, self.unit)?;
        self.seconds_left.map_or(Ok(()), |seconds| {
            write!(formatter, ", about {} left", duration(seconds))
        })
    }
}

/// Measures the progress of a phase from its start. If it has a worker, shows the progress on the worker's line of the
/// board until it is dropped.
#[derive(Debug)]
pub struct Meter {
    phase: String,
    unit: &'static str,
    clock: Clock,
    began: Duration,
    /// What was done at the first report.
    first: OnceLock<u64>,
    pub(crate) worker: Option<Worker>,
}

impl Meter {
    /// Starts to measure a phase. `unit` names what is counted, in the plural.
    pub fn start(phase: &str, unit: &'static str, clock: &Clock) -> Self {
        Self {
            phase: phase.to_owned(),
            unit,
            began: clock.now(),
            clock: clock.clone(),
            first: OnceLock::new(),
            worker: None,
        }
    }

    /// The phase.
    pub fn phase(&self) -> &str {
        &self.phase
    }

    /// Reports that `done` of `total` are done, and returns the progress.
    pub fn at(&self, done: u64, total: u64) -> Progress {
        let seconds = self.clock.now().saturating_sub(self.began).as_secs_f64();
        let left = total.saturating_sub(done) as f64;
        // What was done before this process started says nothing about the pace.
        let made = done.saturating_sub(*self.first.get_or_init(|| done));
        let progress = Progress {
            phase: self.phase.clone(),
            unit: self.unit.to_owned(),
            done,
            total,
            seconds_left: (made > 0).then(|| seconds / made as f64 * left),
        };
        if let Some(worker) = &self.worker {
            *worker.progress.lock() = Some(progress.clone());
        }
        progress
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            *worker.progress.lock() = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use crate::board::tests::board;

    #[test]
    fn a_phase_is_on_the_board_while_it_lasts_and_says_what_is_left() {
        let (board, seconds) = board();
        let worker = board.worker("student");
        let shown = || board.worker_statuses()[0].progress.clone();
        assert_eq!(shown(), None);
        let meter = worker.meter("first evaluation of the student", "documents");
        let first = meter.at(0, 480);
        assert_eq!(
            first.to_string(),
            "first evaluation of the student: 0 of 480 documents"
        );
        seconds.store(30, Ordering::Relaxed);
        let quarter = meter.at(120, 480);
        assert_eq!(quarter.seconds_left, Some(90.0));
        assert_eq!(
            quarter.to_string(),
            "first evaluation of the student: 120 of 480 documents, about 1 min 30 s left"
        );
        assert_eq!(shown(), Some(quarter));
        drop(meter);
        assert_eq!(shown(), None);
    }
}
