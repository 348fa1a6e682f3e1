//! Prints the course of a distillation: lines about steps, evaluations and events.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ddk_actors::{Live, Observer, StepReport, Totals};
use ddk_run::records::{ByDomain, EventKind, EventLine, MixtureLine};
use ddk_settings::Settings;
use ddk_telemetry::Activity;
use parking_lot::Mutex;

use crate::{
    display::{say, set_line_seconds},
    progress::list_weights,
};

/// A step's line lists weights only if there are at most this many domains.
const FEW_DOMAINS: usize = 4;
/// The width that lines should fit.
const COLUMNS: usize = 120;

/// Prints the progress of a distillation, and tells the process's activity of each step.
pub struct Printer {
    activity: Arc<Activity>,
    live: Arc<Live>,
    last: Mutex<Last>,
}

fn line_seconds(settings: &Settings) -> f64 {
    settings.log.interval_seconds
}

/// What was last printed. The next line reports what changed since.
#[derive(Default)]
struct Last {
    step: u64,
    time: Option<Instant>,
    totals: Totals,
    mixture: Option<MixtureLine>,
    /// Mean gap or mean logarithm of the perplexity before the first step.
    at_start: Option<f64>,
    /// Seconds that saves had stalled training when this process began, and its saves since.
    stalled: f64,
    saves: u64,
}

impl Printer {
    /// Prints a line as often as the settings say.
    pub fn new(live: Arc<Live>, activity: Arc<Activity>) -> Self {
        set_line_seconds(live.get(line_seconds));
        Self {
            activity,
            live,
            last: Mutex::default(),
        }
    }

    /// Continues from this step, these totals and the run's mixtures so far. Returns the number of later steps that had
    /// been made.
    pub fn begin(&self, step: u64, totals: Totals, mixtures: &[MixtureLine]) -> u64 {
        let mut last = self.last.lock();
        let undone = last.step.saturating_sub(step);
        *last = Last {
            step,
            stalled: totals.save_stall_seconds,
            totals,
            mixture: mixtures.last().cloned(),
            at_start: mixtures.first().and_then(mean_measured),
            ..Last::default()
        };
        undone
    }
}

impl Observer for Printer {
    fn on_step(&self, report: &StepReport<'_>) {
        let line = report.line;
        let mut last = self.last.lock();
        last.step = line.step;
        let stall = report.totals.save_stall_seconds - last.stalled;
        let seconds = line.seconds.values().sum();
        self.activity.stepped(
            line.step,
            line.tokens,
            seconds,
            stall / last.saves.max(1) as f64,
        );
        let line_seconds = self.live.get(line_seconds);
        set_line_seconds(line_seconds);
        let every = Duration::from_secs_f64(line_seconds);
        let due = last.time.is_none_or(|time| time.elapsed() >= every);
        if !due && report.limit != Some(line.step) {
            return;
        }
        let text = step_line(report, &last.totals);
        tracing::info!("{text}");
        last.time = Some(Instant::now());
        last.totals = report.totals.clone();
        drop(last);
        say(&text);
    }

    fn on_mixture(&self, line: &MixtureLine) {
        let (interval, step) = (line.interval, line.step);
        let (weights, ratio) = (&line.weights, &line.ratio);
        tracing::info!(interval, step, ?weights, ?ratio, "mixture");
        let mut last = self.last.lock();
        let before = last.mixture.replace(line.clone());
        let text = evaluation_line(line, before.as_ref(), &mut last.at_start);
        drop(last);
        if let Some(text) = text {
            say(&text);
        }
    }

    fn on_event(&self, event: &EventLine) {
        match event.kind {
            // Checkpoints are routine; everything else deserves a line.
            EventKind::Saved => self.last.lock().saves += 1,
            kind => say(&format!("{kind}: {}", event.message)),
        }
    }
}

fn step_line(report: &StepReport<'_>, before: &Totals) -> String {
    let (line, now) = (report.line, report.totals);
    let seconds = (now.distill_seconds - before.distill_seconds).max(1e-9);
    let share = |now: f64, before: f64| 100.0 * (now - before) / seconds;
    let limit = report.limit.map(|limit| format!("/{limit}"));
    let layer = line.layer_loss.map(|layer| format!("  layer {layer:.4}"));
    let student = |totals: &Totals| totals.student_busy_seconds + totals.evaluation_seconds;
    let mut text = format!(
        "step {}{}  loss {:.4}  ce {:.4}  kd {:.4}{}  lr {:.2e}  {:.0} tok/s  teacher {:.0}%  student {:.0}%",
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
    );
    if report.weights.len() <= FEW_DOMAINS {
        let weights = list_weights(report.weights.iter().copied());
        if text.chars().count() + 2 + weights.chars().count() <= COLUMNS {
            text += &format!("  {weights}");
        }
    }
    if let Some(reason) = &line.skipped {
        text += &format!("  update skipped: {reason}");
    }
    text
}

/// One line about an evaluation and the mixture that follows from it. `None` if nothing was measured for this mixture.
/// `at_start`: the mean at the first evaluation that this process has seen, which it sets.
fn evaluation_line(
    line: &MixtureLine,
    before: Option<&MixtureLine>,
    at_start: &mut Option<f64>,
) -> Option<String> {
    if before.is_some_and(|before| before.evaluated_at_step == line.evaluated_at_step) {
        return None;
    }
    let when = match line.evaluated_at_step {
        0 => "evaluation before the first step".to_owned(),
        step => format!("evaluation after step {step}"),
    };
    let (now, worst) = (mean_measured(line)?, worst(&line.gap));
    let earlier = before.and_then(mean_measured);
    let (what, shown): (_, fn(f64) -> f64) = if line.gap.is_empty() {
        ("mean perplexity", f64::exp)
    } else {
        ("mean gap", |gap| gap)
    };
    let mut text = format!("{when}: {what}");
    if let Some(earlier) = earlier {
        text += &format!(" {:.3} →", shown(earlier));
    }
    text += &format!(" {:.3}", shown(now));
    let start = *at_start.get_or_insert(now);
    if earlier.is_some_and(|earlier| earlier != start) {
        text += &format!(" (start {:.3})", shown(start));
    }
    if let Some((name, gap)) = worst {
        text += &format!("; worst: {name} {gap:.3}");
    }
    let moves = before.map(|before| moves(&before.weights, &line.weights));
    for (number, weight) in moves.unwrap_or_default().into_iter().enumerate() {
        let more = match number {
            0 => format!("; weights {weight}"),
            _ => format!(", {weight}"),
        };
        if text.chars().count() + more.chars().count() <= COLUMNS {
            text += &more;
        }
    }
    Some(text)
}

/// The mean gap. Without a teacher there are no gaps, and it is the mean logarithm of the perplexity.
fn mean_measured(line: &MixtureLine) -> Option<f64> {
    if !line.gap.is_empty() {
        return mean(&line.gap);
    }
    let logarithms = line.student_perplexity.iter();
    let logarithms = logarithms.map(|(name, value)| (name.clone(), value.ln()));
    mean(&logarithms.collect())
}

fn mean(values: &ByDomain) -> Option<f64> {
    let sum: f64 = values.values().sum();
    (!values.is_empty()).then(|| sum / values.len() as f64)
}

fn worst(gaps: &ByDomain) -> Option<(String, f64)> {
    let worst = gaps.iter().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    (gaps.len() > 1).then(|| (worst.0.clone(), *worst.1))
}

/// The weight that rose most, and the one that fell most.
fn moves(before: &ByDomain, now: &ByDomain) -> Vec<String> {
    let change = |(name, now): (&String, &f64)| {
        let before = *before.get(name)?;
        Some((name.clone(), before, *now))
    };
    // Skip moves too small to show in three decimals.
    let is_seen = |(_, before, now): &(String, f64, f64)| (now - before).abs() >= 5e-4;
    let changes = now.iter().filter_map(change).filter(is_seen);
    let changes: Vec<(String, f64, f64)> = changes.collect();
    let by_change =
        |a: &&(String, f64, f64), b: &&(String, f64, f64)| (a.2 - a.1).total_cmp(&(b.2 - b.1));
    let up = changes.iter().max_by(by_change).filter(|(_, a, b)| b > a);
    let down = changes.iter().min_by(by_change).filter(|(_, a, b)| b < a);
    let shown = |(name, before, now): &(String, f64, f64)| format!("{name} {before:.3} → {now:.3}");
    up.into_iter().chain(down).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(step: u64, weights: [f64; 3], gaps: [f64; 3]) -> MixtureLine {
        let names = ["coins", "rivers", "storms"].map(str::to_owned);
        let by_domain =
            |values: [f64; 3]| -> ByDomain { names.clone().into_iter().zip(values).collect() };
        MixtureLine {
            interval: step / 10,
            step,
            policy: "ddk".to_owned(),
            alpha: Some(0.5),
            weights: by_domain(weights),
            target: by_domain(weights),
            previous_weights: None,
            student_perplexity: by_domain(gaps.map(f64::exp)),
            teacher_perplexity: by_domain([1.0; 3]),
            ratio: by_domain(gaps.map(f64::exp)),
            gap: by_domain(gaps),
            evaluated_at_step: step,
            discrepancy: None,
            losses: None,
            reference: None,
            excess: None,
            mean_weights: None,
            refused: None,
        }
    }

    #[test]
    fn an_evaluation_has_one_line_that_fits() {
        let lines = [
            line(0, [0.5, 0.3, 0.2], [0.9, 1.8, 2.7]),
            line(10, [0.3, 0.3, 0.4], [0.6, 1.5, 2.1]),
            line(20, [0.25, 0.35, 0.4], [0.3, 1.2, 1.5]),
            // The weights move without an evaluation.
            MixtureLine {
                evaluated_at_step: 20,
                ..line(30, [0.2, 0.4, 0.4], [0.3, 1.2, 1.5])
            },
        ];
        let (mut before, mut at_start, mut said) = (None, None, Vec::new());
        for line in lines {
            said.push(evaluation_line(&line, before.as_ref(), &mut at_start));
            before = Some(line);
        }
        let said: Vec<_> = said.iter().map(Option::as_deref).collect();
        assert_eq!(
            said,
            [
                Some("evaluation before the first step: mean gap 1.800; worst: storms 2.700"),
                Some(
                    "evaluation after step 10: mean gap 1.800 → 1.400; worst: storms 2.100; weights storms 0.200 → \
                     0.400, coins 0.500 → 0.300"
                ),
                Some(
                    "evaluation after step 20: mean gap 1.400 → 1.000 (start 1.800); worst: storms 1.500; weights \
                     rivers 0.300 → 0.350"
                ),
                None,
            ]
        );
    }

    #[test]
    fn without_a_teacher_the_line_shows_perplexities() {
        let alone = |step, gaps: [f64; 3]| MixtureLine {
            gap: ByDomain::new(),
            ..line(step, [0.4, 0.3, 0.3], gaps)
        };
        let (first, second) = (alone(0, [2.0; 3]), alone(10, [1.0; 3]));
        let mut at_start = None;
        let _ = evaluation_line(&first, None, &mut at_start);
        assert_eq!(
            evaluation_line(&second, Some(&first), &mut at_start).as_deref(),
            Some("evaluation after step 10: mean perplexity 7.389 → 2.718")
        );
    }
}
