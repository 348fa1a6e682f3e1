//! How far a long phase is, for whoever waits for it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Clock, Worker};

/// How far a long phase is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What is going on: `first evaluation of the student`, …
    pub phase: String,
    /// What is counted: `documents`, …
    pub unit: String,
    /// How many are done.
    pub done: u64,
    /// How many there are.
    pub total: u64,
    /// By the pace so far; `null` until something is done.
    pub seconds_left: Option<f64>,
}

impl fmt::Display for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            phase,
            unit,
            done,
            total,
            seconds_left,
        } = self;
        write!(formatter, "{phase}: {done} of {total} {unit}")?;
        match seconds_left {
            Some(seconds) => write!(formatter, ", about {} left", span(*seconds)),
            None => Ok(()),
        }
    }
}

/// A span of time in the unit that a person would use.
fn span(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..120 => format!("{whole} s"),
        120..7200 => format!("{} min", (whole + 30) / 60),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Measures a phase from its beginning; on the board of its worker, where it has one, until it is dropped.
#[derive(Debug)]
pub struct Meter {
    phase: String,
    unit: &'static str,
    clock: Clock,
    began: Duration,
    worker: Option<Worker>,
}

impl Meter {
    /// Of a phase that begins now. `unit`: what is counted, in the plural.
    pub fn start(phase: &str, unit: &'static str, clock: &Clock) -> Self {
        Self {
            phase: phase.to_owned(),
            unit,
            began: clock.now(),
            clock: clock.clone(),
            worker: None,
        }
    }

    pub(crate) fn of(mut self, worker: &Worker) -> Self {
        self.worker = Some(worker.clone());
        self
    }

    /// So many are done.
    pub fn at(&self, done: u64, total: u64) -> Progress {
        let seconds = self.clock.now().saturating_sub(self.began).as_secs_f64();
        let left = total.saturating_sub(done) as f64;
        let progress = Progress {
            phase: self.phase.clone(),
            unit: self.unit.to_owned(),
            done,
            total,
            seconds_left: (done > 0).then(|| seconds / done as f64 * left),
        };
        if let Some(worker) = &self.worker {
            worker.set_progress(Some(progress.clone()));
        }
        progress
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(worker) = &self.worker {
            worker.set_progress(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
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
            "first evaluation of the student: 120 of 480 documents, about 90 s left"
        );
        assert_eq!(shown(), Some(quarter));
        drop(meter);
        assert_eq!(shown(), None);
    }

    #[test]
    fn spans_are_in_the_unit_that_a_person_would_use() {
        assert_eq!(span(119.4), "119 s");
        assert_eq!(span(150.0), "3 min");
        assert_eq!(span(9000.0), "2.5 h");
    }
}
