//! What a user sees while something runs: a bar on a terminal, and now and then a dense line, on standard error.

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

/// Says a line on standard error. If nobody listens any more (a closed terminal or pipe, a full disk), work continues.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A bar that is hidden where standard error is no terminal.
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

/// Long phases are told of at least so often.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
/// Phases whose last line is remembered; no more run at a time.
const PHASES: usize = 8;

/// Says when a long phase is to be told of again: each phase on its own, the first time after a while.
pub struct Pace {
    /// How often steps are told of.
    every: Mutex<Duration>,
    clock: Clock,
    /// When each phase was told of last, or began.
    told: Mutex<VecDeque<(String, Duration)>>,
}

impl Pace {
    /// As often as steps are reported (`log.interval_seconds`), but at least every 5 seconds.
    pub fn new(line_seconds: f64, clock: &Clock) -> Self {
        Self {
            every: Mutex::new(Duration::from_secs_f64(line_seconds)),
            clock: clock.clone(),
            told: Mutex::default(),
        }
    }

    /// Whether it is to be told of now.
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

/// Reports how far a long job is: with a bar on a terminal, otherwise with a line now and then.
pub struct Reporter {
    bar: ProgressBar,
    pace: Pace,
    clock: Clock,
}

impl Reporter {
    /// Lines come every `seconds`, and at least every 5 seconds.
    pub fn new(seconds: f64) -> Self {
        let clock = Clock::system();
        Self {
            bar: bar(0, "{bar:30} {msg}"),
            pace: Pace::new(seconds, &clock),
            clock,
        }
    }

    /// A phase that begins now. `unit`: what is counted, in the plural.
    pub fn meter(&self, phase: &str, unit: &'static str) -> Meter {
        Meter::start(phase, unit, &self.clock)
    }

    /// Shows how far a phase is.
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
/// The folder holds no weights.
pub fn hash_weights(folder: &Path) -> Result<String, ModelError> {
    let reporter = Reporter::new(LONGEST_SILENCE.as_secs_f64());
    let meter = reporter.meter(&format!("hashing {}", folder.display()), "MB");
    let tell = |done, total| reporter.report(&meter.at(done >> 20, total >> 20));
    Ok(Weights::open(folder)?.hash(tell))
}

/// Locks what is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches a distillation.
pub struct Printer {
    bar: ProgressBar,
    pace: Pace,
    live: Arc<Live>,
    last: Mutex<Last>,
}

fn line_seconds(settings: &Settings) -> f64 {
    settings.log.interval_seconds
}

/// The line said last, so that the next tells of the time since.
struct Last {
    time: Option<Instant>,
    totals: Totals,
}

impl Printer {
    /// A line as often as the settings say. `limit`: the run's last step.
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

    /// The run continues from these sums, perhaps smaller ones than before.
    pub fn begin(&self, totals: Totals) {
        *lock(&self.last) = Last { time: None, totals };
    }

    /// The run continues after this step. Returns how many later steps had been made.
    pub fn rewind(&self, step: u64) -> u64 {
        let undone = self.bar.position().saturating_sub(step);
        self.bar.set_position(step);
        undone
    }

    /// Takes the bar away.
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
        // Saves are routine; everything else deserves a line.
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
                // The other phase is short, and keeps no line from this one.
                assert!(line_seconds == 0.0 || batch >= 2 || !pace.is_due(&teacher.at(batch, 20)));
            }
            told
        };
        assert_eq!(told(15.0), [5, 10, 15]);
        assert_eq!(told(2.0), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(told(0.0).len(), 20);
        // However many phases there were, the last ones are remembered.
        let pace = Pace::new(15.0, &clock);
        for step in 0..100 {
            let phase = format!("evaluation of the student after step {step}");
            let _ = pace.is_due(&Meter::start(&phase, "documents", &clock).at(0, 20));
        }
        assert_eq!(pace.told.lock().unwrap().len(), PHASES);
    }
}
