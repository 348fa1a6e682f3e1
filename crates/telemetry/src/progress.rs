//! Measures the progress of long phases, such as an evaluation.

use std::sync::Arc;

pub use ddk_run::view::Progress;

use crate::{
    Activity, Worker,
    gauge::{Gauge, Source},
};

/// Measures the progress of a phase from its start, and shows it until it is dropped: as what the process is doing, and
/// on the line of its worker, if it has one.
#[derive(Debug)]
pub struct Meter {
    gauge: Arc<Gauge>,
    activity: Arc<Activity>,
}

impl Meter {
    /// Starts to measure a phase of this process. `unit` names what is counted, in the plural.
    pub fn start(phase: &str, unit: &'static str) -> Self {
        Self::of(Activity::of_process(), phase, unit, None, false, None)
    }

    /// Like [`Self::start`], for a phase whose progress `read` returns: how many are done, and how many there are.
    pub fn reading(
        phase: &str,
        unit: &'static str,
        read: impl Fn() -> (u64, u64) + Send + Sync + 'static,
    ) -> Self {
        let source = Some(Box::new(read) as Source);
        Self::of(Activity::of_process(), phase, unit, None, false, source)
    }

    /// Starts to measure a phase of a worker.
    pub(crate) fn of_worker(
        activity: &Arc<Activity>,
        worker: &Worker,
        phase: &str,
        unit: &'static str,
        is_evaluation: bool,
    ) -> Self {
        let name = Some(worker.name().to_owned());
        let meter = Self::of(Arc::clone(activity), phase, unit, name, is_evaluation, None);
        *worker.progress.lock() = Arc::downgrade(&meter.gauge);
        meter
    }

    fn of(
        activity: Arc<Activity>,
        phase: &str,
        unit: &'static str,
        worker: Option<String>,
        is_evaluation: bool,
        source: Option<Source>,
    ) -> Self {
        let mut gauge = Gauge::new(activity.clock().clone(), phase, unit, source);
        (gauge.worker, gauge.is_evaluation) = (worker, is_evaluation);
        let gauge = Arc::new(gauge);
        activity.add(&gauge);
        Self { gauge, activity }
    }

    /// Sets the seconds that the phase is expected to take, which count until its own pace is known.
    #[must_use]
    pub fn expecting(self, seconds: Option<f64>) -> Self {
        self.gauge.expect(seconds);
        self
    }

    /// The phase.
    pub fn phase(&self) -> &str {
        &self.gauge.phase
    }

    /// Reports that `done` of `total` are done, and returns the progress.
    pub fn at(&self, done: u64, total: u64) -> Progress {
        self.gauge.see(done, total);
        let progress = self.gauge.progress();
        self.activity.tell(&progress);
        progress
    }

    /// Ends a phase that is complete. A complete evaluation of the student tells how long the next one takes.
    pub fn finish(self) {
        if self.gauge.is_evaluation {
            self.activity.evaluated(self.gauge.progress().seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

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
            "first evaluation of the student: 0 of 480 documents, 0%, 0 s elapsed"
        );
        seconds.store(30, Ordering::Relaxed);
        let quarter = meter.at(120, 480);
        assert_eq!(quarter.seconds_left, Some(90.0));
        assert_eq!(
            quarter.to_string(),
            "first evaluation of the student: 120 of 480 documents, 25%, 30 s elapsed, about 1 min 30 s left"
        );
        assert_eq!(shown(), Some(quarter));
        // Time passes while a batch is computed, and its estimate never reaches 0 before the phase ends.
        seconds.store(40, Ordering::Relaxed);
        let between = shown().unwrap();
        assert_eq!((between.seconds, between.seconds_left), (40.0, Some(89.75)));
        meter.at(479, 480);
        seconds.store(400, Ordering::Relaxed);
        assert!(shown().unwrap().to_string().ends_with(", about 1 s left"));
        drop(meter);
        assert_eq!(shown(), None);
    }

    #[test]
    fn what_is_expected_counts_until_the_pace_is_known() {
        let (board, seconds) = board();
        let meter = board.worker("student").meter("loading", "MB");
        let meter = meter.expecting(Some(20.0));
        let left = |second| {
            seconds.store(second, Ordering::Relaxed);
            board.activity().progress().unwrap().seconds_left
        };
        assert_eq!(left(5), Some(15.0));
        // It takes longer than expected.
        assert_eq!(left(40), Some(10.0));
        meter.at(0, 100);
        assert_eq!(left(40), Some(10.0));
        meter.at(50, 100);
        assert_eq!(left(40), Some(40.0));
    }

    #[test]
    fn a_phase_can_be_read_from_a_counter() {
        let (loaded, read) = (Arc::new(AtomicU64::new(3)), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&loaded);
        let reads = Arc::clone(&read);
        let meter = Meter::reading("loading a model of this test", "MB", move || {
            reads.fetch_add(1, Ordering::Relaxed);
            (counter.load(Ordering::Relaxed), 10)
        });
        assert_eq!(meter.gauge.progress().done, 3);
        loaded.store(8, Ordering::Relaxed);
        let now = Activity::of_process().progress().unwrap();
        assert_eq!((now.done, now.total), (8, 10));
        assert_eq!(read.load(Ordering::Relaxed), 2);
    }
}
