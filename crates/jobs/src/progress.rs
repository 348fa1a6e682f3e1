//! Prints progress to standard error: a bar on a terminal, and status lines from time to time.

use std::{
    collections::VecDeque,
    io::{self, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ddk_actors::{Live, Observer, StepReport, Totals};
use ddk_model::{ModelError, Weights};
use ddk_run::records::{EventKind, EventLine, MixtureLine};
use ddk_settings::Settings;
use ddk_telemetry::{Clock, Meter, Progress};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

/// Whether this process is one of several and not the first, so that another one speaks to the user.
static IS_SILENT: AtomicBool = AtomicBool::new(false);

/// From now on, [`say`] writes to the log, because rank 0 says the same.
pub(crate) fn be_silent() {
    IS_SILENT.store(true, Ordering::Relaxed);
}

/// Prints a line to standard error. Work continues if that fails (a closed terminal or pipe, a full disk).
pub fn say(text: &str) {
    if IS_SILENT.load(Ordering::Relaxed) {
        tracing::info!("{text}");
    } else {
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Lists weights with their names.
pub(crate) fn list_weights<'a>(weights: impl IntoIterator<Item = (&'a str, f64)>) -> String {
    let weights = weights.into_iter();
    let weights = weights.map(|(name, weight)| format!("{name} {weight:.3}"));
    weights.collect::<Vec<_>>().join(" ")
}

/// Creates a bar, which is hidden if standard error is not a terminal.
fn bar(total: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Maximum time between two reports of a long phase.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
/// Number of phases to remember. At most this many run at a time.
const PHASES: usize = 8;

/// Decides when to report a long phase again. Each phase has its own timer, so the first report comes after a
/// while.
pub struct Pace {
    clock: Clock,
    /// When each phase was last reported, or began.
    told: Mutex<VecDeque<(String, Duration)>>,
}

impl Pace {
    /// Creates timers by this clock.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            told: Mutex::default(),
        }
    }

    /// Returns whether to report the phase now: as often as steps (`log.interval_seconds`), but at least every 5
    /// seconds.
    pub fn is_due(&self, progress: &Progress, line_seconds: f64) -> bool {
        let every = LONGEST_SILENCE.min(Duration::from_secs_f64(line_seconds));
        let now = self.clock.now();
        let mut told = self.told.lock();
        let at = told.iter().position(|(phase, _)| *phase == progress.phase);
        let last = at
            .and_then(|at| told.remove(at))
            .map_or(now, |(_, last)| last);
        let is_due = now.saturating_sub(last) >= every;
        let last = if is_due { now } else { last };
        told.push_back((progress.phase.clone(), last));
        if told.len() > PHASES {
            told.pop_front();
        }
        is_due
    }
}

/// Reports the progress of a long job: with a bar on a terminal, otherwise with a line from time to time.
pub struct Reporter {
    seconds: f64,
    bar: ProgressBar,
    pace: Pace,
}

impl Reporter {
    /// Prints a line every `seconds`, but at least every 5 seconds.
    pub fn new(seconds: f64) -> Self {
        Self {
            seconds,
            bar: bar(0, "{bar:30} {msg}"),
            pace: Pace::new(Clock::system()),
        }
    }

    /// Begins a phase. `unit`: what is counted, in the plural.
    pub fn meter(&self, phase: &str, unit: &'static str) -> Meter {
        Meter::start(phase, unit, &self.pace.clock)
    }

    /// Shows the progress of a phase.
    pub fn report(&self, progress: &Progress) {
        let text = progress.to_string();
        if self.bar.is_hidden() && self.pace.is_due(progress, self.seconds) {
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
    Ok(hash_tensors(folder, &Weights::open(folder)?))
}

/// Hashes some weights of a model's folder.
pub fn hash_tensors(folder: &Path, weights: &Weights) -> String {
    let reporter = Reporter::new(LONGEST_SILENCE.as_secs_f64());
    let meter = reporter.meter(&format!("hashing {}", folder.display()), "MB");
    let tell = |done, total| reporter.report(&meter.at(done >> 20, total >> 20));
    weights.hash(tell)
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
#[derive(Default)]
struct Last {
    time: Option<Instant>,
    totals: Totals,
}

impl Printer {
    /// Prints a line as often as the settings say. `limit`: the run's last step.
    pub fn new(live: Arc<Live>, limit: Option<u64>) -> Self {
        let template = "{bar:30} step {pos}/{len}, {elapsed} elapsed, {eta} left";
        Self {
            bar: bar(limit.unwrap_or(0), template),
            pace: Pace::new(Clock::system()),
            live,
            last: Mutex::default(),
        }
    }

    /// Continues from these totals, which may be smaller than before.
    pub fn begin(&self, totals: Totals) {
        *self.last.lock() = Last { time: None, totals };
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
        let mut last = self.last.lock();
        let every = Duration::from_secs_f64(self.live.get(line_seconds));
        let due = last.time.is_none_or(|time| time.elapsed() >= every);
        if !due && report.limit != Some(line.step) {
            return;
        }
        let (now, before) = (report.totals, &last.totals);
        let seconds = (now.distill_seconds - before.distill_seconds).max(1e-9);
        let share = |now: f64, before: f64| 100.0 * (now - before) / seconds;
        let limit = report.limit.map(|limit| limit.to_string());
        let layer = line.layer_loss.map(|layer| format!("  layer {layer:.4}"));
        let skipped = line.skipped.as_ref();
        let skipped = skipped.map(|reason| format!("  update skipped: {reason}"));
        let student = |totals: &Totals| totals.student_busy_seconds + totals.evaluation_seconds;
        let text = format!(
            "step {}/{}  loss {:.4}  ce {:.4}  kd {:.4}{}  lr {:.2e}  {:.0} tok/s  teacher {:.0} %  \
             student {:.0} %  {}{}",
            line.step,
            limit.unwrap_or_default(),
            line.loss,
            line.ce_loss,
            line.kd_loss,
            layer.unwrap_or_default(),
            line.learning_rate,
            (now.all_tokens() - before.all_tokens()) as f64 / seconds,
            share(now.teacher_busy_seconds, before.teacher_busy_seconds),
            share(student(now), student(before)),
            list_weights(report.weights.iter().copied()),
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
        if self.pace.is_due(progress, self.live.get(line_seconds)) {
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
            let pace = Pace::new(clock.clone());
            let student = Meter::start("evaluation of the student", "documents", &clock);
            let teacher = Meter::start("evaluation of the teacher", "documents", &clock);
            let mut told = Vec::new();
            for batch in 0..20 {
                seconds.store(100 + batch, Ordering::Relaxed);
                if pace.is_due(&student.at(batch, 20), line_seconds) {
                    told.push(batch);
                }
                // The other phase is short and does not suppress this one's lines.
                assert!(
                    line_seconds == 0.0
                        || batch >= 2
                        || !pace.is_due(&teacher.at(batch, 20), line_seconds)
                );
            }
            told
        };
        assert_eq!(told(15.0), [5, 10, 15]);
        assert_eq!(told(2.0), [2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(told(0.0).len(), 20);
        // After many phases, only the last ones are remembered.
        let pace = Pace::new(clock.clone());
        for step in 0..100 {
            let phase = format!("evaluation of the student after step {step}");
            let _ = pace.is_due(&Meter::start(&phase, "documents", &clock).at(0, 20), 15.0);
        }
        assert_eq!(pace.told.lock().len(), PHASES);
    }
}
