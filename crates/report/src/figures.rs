//! The charts of a run, for the page, the report and comparisons.

use std::collections::{BTreeMap, BTreeSet};

use ddk_run::{
    RunView,
    records::{ByDomain, DomainSummary, MixtureLine},
    view::{IntervalRecord, Mixture, Scalar, Steps},
};

use crate::chart::{Chart, Content, Level, Line, Panel};

/// The mixtures and evaluations of a run by domain, along an axis of steps or tokens.
pub(crate) struct Course<'a> {
    pub(crate) mixture: &'a Mixture,
    /// The position of the run's last step on the axis.
    pub(crate) end: f64,
    /// The position of an interval's start on the axis.
    pub(crate) x: fn(&IntervalRecord) -> f64,
}

impl Course<'_> {
    fn lines(&self, points: impl Fn(&str) -> Vec<(f64, f64)>) -> Vec<Line> {
        let intervals = self.mixture.intervals.iter();
        let domains: BTreeSet<&String> = intervals
            .flat_map(|interval| interval.mixture.weights.keys())
            .collect();
        let line = |domain: &String| Line {
            name: domain.clone(),
            points: points(domain),
            ..Line::default()
        };
        domains.into_iter().map(line).collect()
    }

    /// Weight of each domain, stacked. A mixture holds until the next one, or until `end`.
    pub(crate) fn weights(&self) -> Content {
        Content::Areas(self.lines(|domain| {
            let weight = |interval: &IntervalRecord| {
                Some(((self.x)(interval), *interval.mixture.weights.get(domain)?))
            };
            let mut points: Vec<_> = self.mixture.intervals.iter().filter_map(weight).collect();
            points.extend(points.last().map(|last| (self.end, last.1)));
            points
        }))
    }

    /// Returns the intervals that start with a new evaluation, each with the evaluation's position on the axis. Several
    /// intervals may have the same evaluation.
    pub(crate) fn evaluations(&self) -> Vec<(f64, &MixtureLine)> {
        let intervals = || self.mixture.intervals.iter();
        let begins = intervals().map(|interval| (interval.mixture.step, (self.x)(interval)));
        let begins: BTreeMap<u64, f64> = begins.collect();
        let placed = intervals().map(|interval| {
            // The chart may leave out the interval that started with the evaluation.
            let at = begins.get(&interval.mixture.evaluated_at_step).copied();
            (at.unwrap_or_else(|| (self.x)(interval)), &interval.mixture)
        });
        let mut evaluations: Vec<_> = placed.collect();
        evaluations.dedup_by_key(|(_, line)| line.evaluated_at_step);
        evaluations
    }

    /// Results of the evaluations by domain, including the last one of a finished run.
    pub(crate) fn measured(
        &self,
        value: fn(&MixtureLine) -> &ByDomain,
        after: fn(&DomainSummary) -> f64,
    ) -> Content {
        let evaluations = self.evaluations();
        Content::Lines(self.lines(|domain| {
            let at = |(x, line): &(f64, &MixtureLine)| Some((*x, *value(line).get(domain)?));
            let ends = self.mixture.after.iter();
            let ends = ends.filter_map(|domains| Some((self.end, after(domains.get(domain)?))));
            evaluations.iter().filter_map(at).chain(ends).collect()
        }))
    }
}

/// Maximum number of intervals in a chart. Twice as many would not be visible.
const CHARTED: usize = 256;
/// Maximum numbers of intervals and of points of a line in a report, whose size matters.
const REPORTED: (usize, usize) = (128, 512);

/// The data of a run that its charts show.
#[derive(Debug)]
pub struct RunSeries {
    name: String,
    step: u64,
    steps: Steps,
    mixture: Mixture,
}

impl RunSeries {
    /// Takes the data of a run from its view. `name` is the name to show.
    pub fn new(name: String, view: &RunView) -> Self {
        Self::thinned(name, view, CHARTED)
    }

    /// Works like [`Self::new`], with fewer points.
    pub(crate) fn for_report(name: String, view: &RunView) -> Self {
        let (intervals, points) = REPORTED;
        let mut series = Self::thinned(name, view, intervals);
        while series.steps.step.len() > points {
            series.steps = halved(&series.steps);
        }
        series
    }

    fn thinned(name: String, view: &RunView, intervals: usize) -> Self {
        let mut mixture = view.mixture();
        let last = mixture.intervals.len().saturating_sub(1);
        let every = last.div_ceil(intervals).max(1);
        let intervals = mixture.intervals.into_iter().enumerate();
        let shown = intervals.filter(|(index, _)| index.is_multiple_of(every) || *index == last);
        mixture.intervals = shown.map(|(_, interval)| interval).collect();
        Self {
            name,
            step: view.step(),
            steps: view.steps(),
            mixture,
        }
    }

    fn course(&self) -> Course<'_> {
        Course {
            mixture: &self.mixture,
            end: self.step as f64,
            x: |interval| interval.mixture.step as f64,
        }
    }
}

/// The charts of a run.
pub fn charts(run: &RunSeries) -> Vec<Chart> {
    let (steps, course) = (&run.steps, run.course());
    let gaps = course.measured(|line| &line.gap, |domain| domain.gap_after);
    let perplexities = course.measured(
        |line| &line.student_perplexity,
        |domain| domain.student_perplexity_after,
    );
    let about = "ln(student's perplexity / teacher's) on each domain's validation documents.";
    let mut gap = gap_chart("Gap to the teacher", about, gaps);
    let lines = || course.evaluations().into_iter().map(|(_, line)| line);
    if lines().any(|line| !line.student_perplexity.is_empty()) {
        gap.empty = "Without a teacher, there is no gap.".to_owned();
    }
    let about = "The student's, on each domain's validation documents.";
    let (name, title) = ("perplexity", "Perplexity");
    let mut perplexity = chart(name, title, about, "perplexity", perplexities);
    perplexity.log_scale = perplexity.spans_a_decade();
    perplexity.empty = NO_EVALUATION.to_owned();
    let about =
        "How much of the data is drawn from each domain: more where the student is further behind.";
    let (label, content) = ("weight in the mixture", course.weights());
    let mut weights = chart("weights", "Mixture", about, label, content);
    weights.empty = NO_EVALUATION.to_owned();
    let mut charts = vec![gap, losses(steps), perplexity, weights];
    let others = [
        (Scalar::LearningRate, "Learning rate"),
        (Scalar::GradNorm, "Gradient norm before clipping"),
        (Scalar::TokensPerSecond, "Tokens per second"),
    ];
    charts.extend(others.map(|(scalar, title)| {
        let line = scalar_line(steps, scalar, title);
        let content = Content::Lines(line.into_iter().collect());
        let mut chart = chart(&scalar.to_string(), title, "", "", content);
        chart.empty = NO_STEP.to_owned();
        // The learning rate is set, not measured.
        chart.is_noisy = scalar != Scalar::LearningRate;
        chart.log_scale = scalar == Scalar::GradNorm && chart.spans_a_decade();
        chart
    }));
    charts
}

/// Mean gap and loss of several runs, one line per run.
pub fn runs_charts(runs: &[RunSeries]) -> Vec<Chart> {
    let gaps = runs.iter().map(|run| {
        let course = run.course();
        let evaluations = course.evaluations().into_iter();
        let measured = evaluations.map(|(x, line)| (x, mean(line.gap.values())));
        let after = run.mixture.after.as_ref().map(|after| {
            let gaps = after.values().map(|domain| &domain.gap_after);
            (course.end, mean(gaps))
        });
        Line {
            name: run.name.clone(),
            points: measured.chain(after).collect(),
            ..Line::default()
        }
    });
    let losses = runs.iter().map(|run| Line {
        name: run.name.clone(),
        points: scalar_line(&run.steps, Scalar::Loss, "").map_or_else(Vec::new, |line| line.points),
        ..Line::default()
    });
    let about = "Mean over the domains of ln(student's perplexity / teacher's).";
    let gaps = Content::Lines(gaps.collect());
    let losses = Content::Lines(losses.collect());
    vec![
        gap_chart("Mean gap to the teacher", about, gaps),
        loss_chart("", losses),
    ]
}

/// Loss by term. Only TED has a layer term.
fn losses(steps: &Steps) -> Chart {
    let terms = [
        (Scalar::Loss, "loss"),
        (Scalar::CeLoss, "cross-entropy"),
        (Scalar::KdLoss, "KL"),
        (Scalar::LayerLoss, "layers"),
    ];
    let terms = terms.into_iter();
    let lines = terms.filter_map(|(scalar, name)| scalar_line(steps, scalar, name));
    let about = "Means over each step's predictions: loss = cross-entropy + gamma KL, which is KL(teacher || student) \
                 or the divergence that `objective.name` says; with TED also a weight times the distance of layers.";
    loss_chart(about, Content::Lines(lines.collect()))
}

fn loss_chart(about: &str, content: Content) -> Chart {
    let mut chart = chart("loss", "Loss", about, NATS, content);
    chart.empty = NO_STEP.to_owned();
    chart.is_noisy = true;
    chart
}

/// The steps with half as many points. Each is the mean of two.
fn halved(steps: &Steps) -> Steps {
    let mean = |pair: &[Option<f64>]| {
        let known = || pair.iter().flatten();
        let count = known().count();
        (count > 0).then(|| known().sum::<f64>() / count as f64)
    };
    let column = |values: &Vec<Option<f64>>| values.chunks(2).map(mean).collect();
    let columns = steps.scalars.iter();
    Steps {
        stride: 2 * steps.stride,
        step: steps
            .step
            .chunks(2)
            .filter_map(|pair| pair.last().copied())
            .collect(),
        scalars: columns
            .map(|(scalar, values)| (*scalar, column(values)))
            .collect(),
    }
}

fn scalar_line(steps: &Steps, scalar: Scalar, name: &str) -> Option<Line> {
    let values = steps.scalars.get(&scalar)?.iter().zip(&steps.step);
    let points = values.filter_map(|(value, step)| Some((*step as f64, (*value)?)));
    Some(Line {
        name: name.to_owned(),
        points: points.collect(),
        ..Line::default()
    })
}

/// The mean of the finite values.
fn mean<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let finite: Vec<f64> = values.copied().filter(|value| value.is_finite()).collect();
    finite.iter().sum::<f64>() / finite.len() as f64
}

const NATS: &str = "nats per prediction";
const NO_EVALUATION: &str = "There is no evaluation yet.";
const NO_STEP: &str = "There is no step yet.";

/// A chart over the steps with one panel.
fn chart(name: &str, title: &str, about: &str, y_label: &str, content: Content) -> Chart {
    Chart {
        name: name.to_owned(),
        title: title.to_owned(),
        about: about.to_owned(),
        x_label: "step".to_owned(),
        y_label: y_label.to_owned(),
        panels: vec![Panel {
            title: String::new(),
            content,
            level: None,
        }],
        ..Chart::default()
    }
}

/// A chart of gaps over the steps.
fn gap_chart(title: &str, about: &str, gaps: Content) -> Chart {
    let mut chart = chart("gap", title, about, "gap, nats per token", gaps);
    chart.panels[0].level = Some(caught_up());
    chart.empty = NO_EVALUATION.to_owned();
    chart
}

/// The level line at a gap of 0.
pub(crate) fn caught_up() -> Level {
    Level {
        name: "caught up".to_owned(),
        value: 0.0,
    }
}
