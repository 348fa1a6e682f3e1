//! What a user sees while something runs: a bar on a terminal, and now and then a dense line, on standard error.

use std::{
    io::{self, IsTerminal, Write},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use ddk_actors::{Observer, StepReport, Totals};
use ddk_run::records::{EventLine, MixtureLine};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Says a line on standard error. Where nobody listens any more (a closed terminal or pipe, a full disk), work goes on.
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

/// Watches a distillation.
pub struct Printer {
    bar: ProgressBar,
    every: Mutex<Duration>,
    last: Mutex<Last>,
}

/// The line said last, so that the next tells of the time since.
struct Last {
    time: Option<Instant>,
    totals: Totals,
}

impl Printer {
    /// A line every `seconds` (0: each step). `limit`: the run's last step.
    pub fn new(seconds: f64, limit: Option<u64>) -> Self {
        let bar = bar(
            limit.unwrap_or(0),
            "{bar:30} step {pos}/{len}, {elapsed} gone, {eta} left",
        );
        Self {
            bar,
            every: Mutex::new(Duration::from_secs_f64(seconds)),
            last: Mutex::new(Last {
                time: None,
                totals: Totals::default(),
            }),
        }
    }

    /// The run goes on from these sums, perhaps smaller ones than before.
    pub fn begin(&self, totals: Totals) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Last { time: None, totals };
    }

    /// The run goes on after this step; how many steps after it had been made.
    pub fn rewind(&self, step: u64) -> u64 {
        let undone = self.bar.position().saturating_sub(step);
        self.bar.set_position(step);
        undone
    }

    /// Says a line so often from now on.
    pub fn set_every(&self, every: Duration) {
        *self.every.lock().unwrap_or_else(PoisonError::into_inner) = every;
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
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let every = *self.every.lock().unwrap_or_else(PoisonError::into_inner);
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
        let weights: Vec<String> = report
            .weights
            .iter()
            .map(|(name, weight)| format!("{name} {weight:.3}"))
            .collect();
        let text = format!(
            "step {}/{limit}  loss {:.4}  ce {:.4}  kl {:.4}{}  lr {:.2e}  {:.0} tok/s  teacher {:.0} %  student {:.0} %  {}{}",
            line.step,
            line.loss,
            line.ce,
            line.kl,
            line.layer
                .map_or(String::new(), |layer| format!("  layer {layer:.4}")),
            line.learning_rate,
            (now.all_tokens() - before.all_tokens()) as f64 / seconds,
            share(now.teacher_busy_seconds, before.teacher_busy_seconds),
            share(
                now.student_busy_seconds + now.evaluation_seconds,
                before.student_busy_seconds + before.evaluation_seconds
            ),
            weights.join(" "),
            line.skipped
                .as_ref()
                .map_or(String::new(), |reason| format!(
                    "  update skipped: {reason}"
                )),
        );
        tracing::info!("{text}");
        last.time = Some(Instant::now());
        last.totals = now.clone();
        drop(last);
        self.line(&text);
    }

    fn on_mixture(&self, line: &MixtureLine) {
        tracing::info!(interval = line.interval, step = line.step, weights = ?line.weights, ratio = ?line.ratio, "mixture");
    }

    fn on_event(&self, event: &EventLine) {
        // Saves are routine; everything else deserves a line.
        if event.kind != "saved" {
            self.line(&format!("{}: {}", event.kind, event.message));
        }
    }
}
