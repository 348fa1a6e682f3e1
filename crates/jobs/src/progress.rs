//! Prints progress to standard error: a bar on a terminal, and status lines from time to time.

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ddk_actors::{Live, Observer, StepReport, Totals};
use ddk_model::{ModelError, Weights};
use ddk_run::records::{EventKind, EventLine, MixtureLine};
use ddk_settings::Settings;
use ddk_telemetry::{Clock, Meter, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Prints a line to standard error. Work continues if that fails (a closed terminal or pipe, a full disk).
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Creates a bar, which is hidden if standard error is not a terminal.
pub fn bar(total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar
}

/// Maximum time between two reports of a long phase.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
/// Number of phases to remember. At most this many run at a time.
const PHASES: usize = 8;

/// Decides when to report a long phase again. Each phase has its own timer, so the first report comes after a
/// while.
pub struct Pace {
    /// How often steps are reported.
    every: Mutex<Duration>,
    clock: Clock,
    /// When each phase was last reported, or began.
    told: Mutex<VecDeque<(String, Duration)>>,
}

impl Pace {
    /// Reports as often as steps (`log.interval_seconds`), but at least every 5 seconds.
    pub fn new(line_seconds: f64, clock: &Clock) -> Self {
        Self {
            every: Mutex::new(Duration::from_secs_f64(line_seconds)),
            clock: clock.clone(),
            told: Mutex::default(),
        }
    }

    /// Returns whether to report the phase now.
    pub fn is_due(&self, progress: &Progress) -> bool {
        let every = LONGEST_SILENCE.min(*lock(&self.every));
        let now = self.clock.now();
        let mut told = lock(&self.told);
        let at = match told.iter().position(|(phase, _)| *phase == progress.phase) {
            Some(at) => at,
            None => {
                if told.len() == PHASES {
                    told.pop_front();
                }
                told.push_back((progress.phase.clone(), now));
                told.len() - 1
            }
        };
        let last = &mut told[at].1;
        let is_due = now.saturating_sub(*last) >= every;
        if is_due {
            *last = now;
        }
        is_due
    }
}

/// Reports the progress of a long job: with a bar on a terminal, otherwise with a line from time to time.
pub struct Reporter {
    bar: ProgressBar,
    pace: Pace,
    clock: Clock,
}

impl Reporter {
    /// Prints a line every `seconds`, but at least every 5 seconds.
    pub fn new(seconds: f64) -> Self {
        let clock = Clock::system();
        Self {
            bar: bar(0, "{bar:30} {msg}"),
            pace: Pace::new(seconds, &clock),
            clock,
        }
    }

    /// Begins a phase. `unit`: what is counted, in the plural.
    pub fn meter(&self, phase: &str, unit: &'static str) -> Meter {
        Meter::start(phase, unit, &self.clock)
    }

    /// Shows the progress of a phase.
    pub fn report(&self, progress: &Progress) {
        let text = progress.to_string();
        if self.bar.is_hidden() && self.pace.is_due(progress) {
            say(&text);
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
        self.bar.set_message(text);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Hashes the weights of a model.
///
/// # Errors
/// If the folder holds no weights.
pub fn hash_weights(folder: &Path) -> Result<String, ModelError> {
    let reporter = Reporter::new(LONGEST_SILENCE.as_secs_f64());
    let meter = reporter.meter(&format!("hashing {}", folder.display()), "MB");
    let tell = |done, total| reporter.report(&meter.at(done >> 20, total >> 20));
    Ok(Weights::open(folder)?.hash(tell))
}

/// Locks data that is consistent between any two statements, even if another thread panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints the progress of a distillation.
pub struct Printer {
    bar: ProgressBar,
    pace: Pace,
    live: Arc<Live>,
    last: Mutex<Last>,
}

fn line_seconds(settings: &Settings) -> f64 {
    settings.log.interval_seconds
}

/// Time and totals of the last line. The next line reports what changed since.
struct Last {
    time: Option<Instant>,
    totals: Totals,
}

impl Printer {
    /// Prints a line as often as the settings say. `limit`: the run's last step.
    pub fn new(live: Arc<Live>, limit: Option<u64>) -> Self {
        let bar = bar(
            limit.unwrap_or(0),
            "{bar:30} step {pos}/{len}, {elapsed} elapsed, {eta} left",
        );
        Self {
            bar,
            pace: Pace::new(live.get(line_seconds), &Clock::system()),
            live,
            last: Mutex::new(Last {
                time: None,
                totals: Totals::default(),
            }),
        }
    }

    /// Continues from these totals, which may be smaller than before.
    pub fn begin(&self, totals: Totals) {
        *lock(&self.last) = Last { time: None, totals };
    }

    /// Rewinds to this step. Returns the number of later steps that had been made.
    pub fn rewind(&self, step: u64) -> u64 {
        let undone = self.bar.position().saturating_sub(step);
        self.bar.set_position(step);
        undone
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| say(text));
    }
}

impl Observer for Printer {
    fn on_step(&self, report: &StepReport<'_>) {
        let line = report.line;
        self.bar.set_position(line.step);
        let mut last = lock(&self.last);
        let every = Duration::from_secs_f64(self.live.get(line_seconds));
        *lock(&self.pace.every) = every;
        let due = last.time.is_none_or(|time| time.elapsed() >= every);
        if !due && report.limit != Some(line.step) {
            return;
        }
        let (now, before) = (report.totals, &last.totals);
        let seconds = (now.distill_seconds - before.distill_seconds).max(1e-9);
        let share = |now: f64, before: f64| 100.0 * (now - before) / seconds;
        let limit = report
            .limit
            .map_or(String::new(), |limit| limit.to_string());
        let weights = report.weights.iter();
        let weights: Vec<String> = weights
            .map(|(name, weight)| format!("{name} {weight:.3}"))
            .collect();
        let layer = line.layer_loss.map(|layer| format!("  layer {layer:.4}"));
        let skipped = line
            .skipped
            .as_ref()
            .map(|reason| format!("  update skipped: {reason}"));
        let text = format!(
            "step {}/{limit}  loss {:.4}  ce {:.4}  kd {:.4}{}  lr {:.2e}  {:.0} tok/s  teacher {:.0} %  \
             student {:.0} %  {}{}",
            line.step,
            line.loss,
            line.ce_loss,
            line.kd_loss,
            layer.unwrap_or_default(),
            line.learning_rate,
            (now.all_tokens() - before.all_tokens()) as f64 / seconds,
            share(now.teacher_busy_seconds, before.teacher_busy_seconds),
            share(
                now.student_busy_seconds + now.evaluation_seconds,
                before.student_busy_seconds + before.evaluation_seconds
            ),
            weights.join(" "),
            skipped.unwrap_or_default(),
        );
        tracing::info!("{text}");
        last.time = Some(Instant::now());
        last.totals = now.clone();
        drop(last);
        self.line(&text);
    }

    fn on_mixture(&self, line: &MixtureLine) {
        let (interval, step) = (line.interval, line.step);
        let (weights, ratio) = (&line.weights, &line.ratio);
        tracing::info!(interval, step, ?weights, ?ratio, "mixture");
    }

    fn on_progress(&self, progress: &Progress) {
        if self.pace.is_due(progress) {
            let text = progress.to_string();
            tracing::info!("{text}");
            self.line(&text);
        }
    }

    fn on_event(&self, event: &EventLine) {
        // Checkpoints are routine; everything else deserves a line.
        if event.kind != EventKind::Saved {
            self.line(&format!("{}: {}", event.kind, event.message));
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

    #[test]
    fn a_long_phase_is_told_of_every_five_seconds_and_a_short_one_never() {
        let seconds = Arc::new(AtomicU64::new(0));
        let read = Arc::clone(&seconds);
        let clock = Clock::new(move || Duration::from_secs(read.load(Ordering::Relaxed)));
        let told = |line_seconds: f64| -> Vec<u64> {
            seconds.store(100, Ordering::Relaxed);
            let pace = Pace::new(line_seconds, &clock);
            let student = Meter::start("evaluation of the student", "documents", &clock);
            let teacher = Meter::start("evaluation of the teacher", "documents", &clock);
            let mut told = Vec::new();
            for batch in 0..20 {
                seconds.store(100 + batch, Ordering::Relaxed);
                if pace.is_due(&student.at(batch, 20)) {
                    told.push(batch);
                }
                // The other phase is short and does not suppress this one's lines.
                assert!(line_seconds == 0.0 || batch >= 2 || !pace.is_due(&teacher.at(batch, 20)));
            }
            told
        };
        assert_eq!(told(15.0), [5, 10, 15]);
        assert_eq!(told(2.0), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(told(0.0).len(), 20);
        // After many phases, only the last ones are remembered.
        let pace = Pace::new(15.0, &clock);
        for step in 0..100 {
            let phase = format!("evaluation of the student after step {step}");
            let _ = pace.is_due(&Meter::start(&phase, "documents", &clock).at(0, 20));
        }
        assert_eq!(pace.told.lock().unwrap().len(), PHASES);
    }
}
