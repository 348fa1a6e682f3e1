//! What this process is doing: the phase, a count, the time that has passed, and the time that is left. The progress
//! bar, the lines in a pipe, the log, the page and `ddk watch` all read it here.

use std::{
    fmt,
    sync::{Arc, LazyLock, OnceLock, Weak},
    time::Duration,
};

use ddk_run::view::Progress;
use parking_lot::Mutex;

use crate::{
    Clock,
    estimate::{Course, Evaluating, Pace},
    gauge::Gauge,
};

/// The phase of a run that makes steps.
pub const TRAINING: &str = "training";
/// The worker whose phases stop training.
const STUDENT: &str = "student";

/// What a process is doing. Reading it never involves a worker.
pub struct Activity {
    clock: Clock,
    now: Mutex<Now>,
    listener: OnceLock<Listener>,
}

/// Hears of each report of a phase's progress.
type Listener = Box<dyn Fn(&Progress) + Send + Sync>;

impl fmt::Debug for Activity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Activity({:?})", self.progress())
    }
}

#[derive(Debug, Default)]
struct Now {
    /// The phase below all others, and when it began.
    phase: Option<(String, Duration)>,
    /// Whether this phase makes steps.
    trains: bool,
    /// Phases with a count, in the order in which they began.
    gauges: Vec<Weak<Gauge>>,
    course: Option<Course>,
    pace: Pace,
    /// When the run made its last step and its last evaluation.
    ended: Option<Duration>,
    /// Whether the run ends after its current step.
    stops: bool,
}

impl Activity {
    /// The activity of this process.
    pub fn of_process() -> Arc<Self> {
        static PROCESS: LazyLock<Arc<Activity>> =
            LazyLock::new(|| Arc::new(Activity::new(Clock::system())));
        Arc::clone(&PROCESS)
    }

    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            now: Mutex::default(),
            listener: OnceLock::new(),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Begins a phase that lasts until the next one. Phases with a count lie above it ([`crate::Meter`]). Does nothing
    /// if this is the current phase.
    pub fn begin(&self, phase: &str) {
        let mut now = self.now.lock();
        now.trains = phase == TRAINING;
        if now.phase.as_ref().is_none_or(|(old, _)| old != phase) {
            now.phase = Some((phase.to_owned(), self.clock.now()));
        }
    }

    /// The process does nothing of its own from now on.
    pub fn rest(&self) {
        let mut now = self.now.lock();
        (now.phase, now.trains) = (None, false);
    }

    /// Sets what the current run has to do. It continues after `step` and these trained tokens.
    pub fn set_course(&self, course: Course, step: u64, tokens: u64) {
        let mut now = self.now.lock();
        let before = std::mem::replace(&mut now.pace, Pace::at(step, tokens));
        // After a rewind, an evaluation takes as long as before.
        now.pace.evaluation = before.evaluation.filter(|_| now.course.is_some());
        now.course = Some(course);
        (now.ended, now.stops) = (None, false);
    }

    /// The last evaluation is done: only the end of the run remains.
    pub(crate) fn end(&self) {
        self.now.lock().ended.get_or_insert(self.clock.now());
    }

    /// The run ends after its current step: the time of its other steps is no longer part of the estimate.
    pub fn stop(&self) {
        self.now.lock().stops = true;
    }

    /// Forgets the run, which is done.
    pub fn end_course(&self) {
        let mut now = self.now.lock();
        (now.course, now.pace, now.ended) = (None, Pace::default(), None);
    }

    /// Adds a step that trained on `tokens` in `seconds`. `stall`: mean seconds that a checkpoint stalls training.
    pub fn stepped(&self, step: u64, tokens: u64, seconds: f64, stall: f64) {
        let mut now = self.now.lock();
        now.pace.add(step, tokens, seconds);
        now.pace.saves(stall);
    }

    pub(crate) fn evaluated(&self, seconds: f64) {
        self.now.lock().pace.evaluation = Some(seconds);
    }

    /// Seconds of the last evaluation of the student, or what one is expected to take.
    pub(crate) fn evaluation_seconds(&self) -> Option<f64> {
        let now = self.now.lock();
        let expected = now.course.as_ref();
        let expected = expected.and_then(|course| course.evaluation_seconds);
        now.pace.evaluation.or(expected)
    }

    pub(crate) fn add(&self, gauge: &Arc<Gauge>) {
        let mut now = self.now.lock();
        now.gauges.retain(|gauge| gauge.strong_count() > 0);
        now.gauges.push(Arc::downgrade(gauge));
    }

    /// Calls `listener` on the worker's thread for each report of a phase's progress. Only the first call has an
    /// effect.
    pub fn listen(&self, listener: impl Fn(&Progress) + Send + Sync + 'static) {
        let _ = self.listener.set(Box::new(listener));
    }

    pub(crate) fn tell(&self, progress: &Progress) {
        if let Some(listener) = self.listener.get() {
            listener(progress);
        }
    }

    /// The current phase. `None` if the process does nothing of its own.
    pub fn progress(&self) -> Option<Progress> {
        let now = self.now.lock();
        let mut gauges = now.in_front();
        let Some(last) = gauges.pop() else {
            return now.bare(&self.clock);
        };
        let mut progress = last.progress();
        // The phase ends when the slowest of the workers is done.
        let others = gauges.iter().map(|gauge| gauge.progress().seconds_left);
        progress.seconds_left = others.fold(progress.seconds_left, |a, b| match (a, b) {
            (Some(a), Some(b)) => Some(a.max(b)),
            _ => a.or(b),
        });
        Some(progress)
    }

    /// Estimated seconds until the run ends; before its first step, a guess at best.
    pub fn seconds_left(&self) -> Option<f64> {
        self.now.lock().seconds_left(&self.clock)
    }
}

impl Now {
    /// The phases with a count that stop everything else. While steps are made, those of other workers than the student
    /// run beside training.
    fn in_front(&self) -> Vec<Arc<Gauge>> {
        let gauges = self.gauges.iter().filter_map(Weak::upgrade);
        let has_stepped = self.trains && self.pace.step() > 0;
        let stops = |gauge: &Arc<Gauge>| {
            let worker = gauge.worker.as_deref();
            worker.is_none_or(|worker| worker == STUDENT || !has_stepped)
        };
        gauges.filter(stops).collect()
    }

    /// The phase without a count, or training.
    fn bare(&self, clock: &Clock) -> Option<Progress> {
        let (phase, began) = self.phase.as_ref()?;
        let mut progress = Progress {
            phase: phase.clone(),
            unit: String::new(),
            done: 0,
            total: 0,
            seconds: clock.now().saturating_sub(*began).as_secs_f64(),
            seconds_left: None,
        };
        if let Some(course) = self.course.as_ref().filter(|_| self.trains) {
            let (unit, done, total) = match (course.steps, course.tokens) {
                (None, Some(tokens)) => ("tokens", self.pace.tokens(), tokens),
                (steps, _) => ("steps", self.pace.step(), steps.unwrap_or(0)),
            };
            progress.unit = unit.to_owned();
            (progress.done, progress.total) = (done, total);
            progress.seconds_left = self.seconds_left(clock);
        }
        Some(progress)
    }

    fn seconds_left(&self, clock: &Clock) -> Option<f64> {
        let course = self.course.as_ref().filter(|_| !self.stops)?;
        let mut gauges = self.gauges.iter().filter_map(Weak::upgrade);
        let evaluation = gauges.rfind(|gauge| gauge.is_evaluation);
        let evaluating = evaluation.and_then(|gauge| {
            let progress = gauge.progress();
            Some(Evaluating {
                seconds: progress.seconds,
                left: progress.seconds_left?,
            })
        });
        if let Some(ended) = self.ended {
            let passed = clock.now().saturating_sub(ended).as_secs_f64();
            let shown = self.in_front();
            let shown = shown
                .iter()
                .filter_map(|gauge| gauge.progress().seconds_left);
            return Some(shown.fold((course.ending_seconds - passed).max(1.0), f64::max));
        }
        course.seconds_left(&self.pace, evaluating)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use ddk_run::view::State;

    use super::*;
    use crate::board::tests::board;

    #[test]
    fn a_phase_is_known_from_the_first_second_and_its_time_passes() {
        let (board, seconds) = board();
        let activity = board.activity();
        assert_eq!(activity.progress(), None);
        activity.begin("hashing");
        seconds.store(7, Ordering::Relaxed);
        let line = || activity.progress().unwrap().to_string();
        assert_eq!(line(), "hashing, 7 s elapsed");
        // It is the same phase.
        activity.begin("hashing");
        assert_eq!(line(), "hashing, 7 s elapsed");
        activity.begin("loading");
        assert_eq!(line(), "loading, 0 s elapsed");
        activity.rest();
        assert_eq!(activity.progress(), None);
    }

    #[test]
    fn an_evaluation_is_in_front_of_training_and_all_of_it_counts() {
        let (board, seconds) = board();
        let activity = board.activity();
        let at = |second| seconds.store(second, Ordering::Relaxed);
        activity.begin("loading the models");
        let course = Course {
            steps: Some(20),
            interval: 10,
            evaluation_every: Some(1),
            ending_seconds: 3.0,
            ..Course::default()
        };
        activity.set_course(course, 0, 0);
        board.set_ready(true);
        // Both models are measured at first: the slower one decides.
        let teacher = board
            .worker("teacher-0")
            .meter("evaluation of the teacher", "documents");
        let student = board
            .worker("student")
            .evaluation("first evaluation of the student");
        teacher.at(0, 40);
        student.at(0, 40);
        at(10);
        teacher.at(10, 40);
        student.at(20, 40);
        let now = activity.progress().unwrap();
        assert_eq!(
            (now.phase.as_str(), now.done),
            ("first evaluation of the student", 20)
        );
        assert_eq!(now.seconds_left, Some(30.0));
        assert_eq!(activity.seconds_left(), None, "no step was made yet");
        at(20);
        student.finish();
        assert_eq!(
            activity.progress().unwrap().phase,
            "evaluation of the teacher"
        );
        drop(teacher);
        assert_eq!(activity.progress().unwrap().phase, TRAINING);
        // Steps of 2 s, evaluations of 20 s.
        activity.stepped(10, 100, 2.0, 0.0);
        let training = activity.progress().unwrap();
        assert_eq!(
            (training.done, training.total, training.unit.as_str()),
            (10, 20, "steps")
        );
        assert_eq!(training.seconds_left, Some(20.0 + 20.0 + 3.0));
        assert_eq!(activity.seconds_left(), training.seconds_left);
        // The next evaluation is expected to take as long, and a copy's evaluation beside training is not in front.
        let copy = board
            .worker("teacher-0")
            .meter("evaluation of the student after step 10", "documents");
        copy.at(1, 40);
        assert_eq!(activity.progress().unwrap().phase, TRAINING);
        let student = board
            .worker("student")
            .evaluation("evaluation of the student after step 10");
        student.at(0, 40);
        at(25);
        assert_eq!(activity.progress().unwrap().seconds_left, Some(15.0));
        assert_eq!(activity.seconds_left(), Some(15.0 + 20.0 + 20.0 + 3.0));
        drop((student, copy));
        // At the end, what is left of it counts down and never reaches 0.
        activity.stepped(20, 100, 2.0, 0.0);
        board.set_state(State::Ending);
        activity.begin("exporting the student");
        assert_eq!(activity.seconds_left(), Some(3.0));
        at(40);
        assert_eq!(activity.seconds_left(), Some(1.0));
        activity.end_course();
        assert_eq!(activity.seconds_left(), None);
    }

    #[test]
    fn a_run_that_stops_has_only_the_time_of_its_phase_left() {
        let (board, seconds) = board();
        let activity = board.activity();
        let course = Course {
            steps: Some(20),
            interval: 10,
            ..Course::default()
        };
        activity.set_course(course.clone(), 0, 0);
        board.set_state(State::Running);
        activity.stepped(5, 100, 2.0, 0.0);
        assert_eq!(activity.seconds_left(), Some(30.0));
        activity.stop();
        assert_eq!(activity.seconds_left(), None);
        let training = activity.progress().unwrap();
        assert_eq!((training.done, training.seconds_left), (5, None));
        let saving = board
            .worker("student")
            .meter("saving the last checkpoint", "MB");
        saving.at(0, 40);
        seconds.store(10, Ordering::Relaxed);
        saving.at(20, 40);
        assert_eq!(activity.progress().unwrap().seconds_left, Some(10.0));
        assert_eq!(activity.seconds_left(), None);
        // The next run of the process has its own time.
        drop(saving);
        activity.set_course(course, 0, 0);
        activity.stepped(5, 100, 2.0, 0.0);
        assert_eq!(activity.seconds_left(), Some(30.0));
    }
}
