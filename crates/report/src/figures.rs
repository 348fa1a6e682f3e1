//! The charts of a run, for the page, the report and comparisons.

use std::collections::{BTreeMap, BTreeSet};

use ddk_run::{
    RunView,
    records::{ByDomain, DomainSummary, MixtureLine},
    view::{IntervalRecord, Mixture, Scalar, Steps},
};

use crate::chart::{Chart, Content, Level, Line, Panel};

/// How a run went, domain by domain, along an axis of steps or tokens.
pub(crate) struct Course<'a> {
    pub(crate) mixture: &'a Mixture,
    /// Where the run is now.
    pub(crate) end: f64,
    /// Where an interval begins.
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
        };
        domains.into_iter().map(line).collect()
    }

    /// Weight of each domain, stacked. A mixture holds until the next one, or until now.
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

    /// Intervals that begin with an evaluation of their own, each with the place where it was made: several may hold
    /// the same one.
    pub(crate) fn evaluations(&self) -> Vec<(f64, &MixtureLine)> {
        let intervals = || self.mixture.intervals.iter();
        let begins = intervals().map(|interval| (interval.mixture.step, (self.x)(interval)));
        let begins: BTreeMap<u64, f64> = begins.collect();
        let placed = intervals().map(|interval| {
            // The interval that began with the evaluation may be one that is not charted.
            let at = begins.get(&interval.mixture.evaluated_at_step).copied();
            (at.unwrap_or_else(|| (self.x)(interval)), &interval.mixture)
        });
        let mut evaluations: Vec<_> = placed.collect();
        evaluations.dedup_by_key(|(_, line)| line.evaluated_at_step);
        evaluations
    }

    /// What evaluations measured by domain, the last one of a finished run included.
    pub(crate) fn measured(
        &self,
        value: fn(&MixtureLine) -> &ByDomain,
        after: fn(&DomainSummary) -> f64,
    ) -> Content {
        let evaluations = self.evaluations();
        Content::Lines(self.lines(|domain| {
            let at = |(x, line): &(f64, &MixtureLine)| Some((*x, *value(line).get(domain)?));
            let summary = self
                .mixture
                .after
                .as_ref()
                .and_then(|domains| domains.get(domain));
            let end = summary.map(|summary| (self.end, after(summary)));
            evaluations.iter().filter_map(at).chain(end).collect()
        }))
    }
}

/// Intervals that a chart shows at most: twice as many would not be seen.
const CHARTED: usize = 256;

/// What charts show of a run.
#[derive(Debug)]
pub struct RunSeries {
    name: String,
    step: u64,
    steps: Steps,
    mixture: Mixture,
}

impl RunSeries {
    /// Of a run that is called `name`.
    pub fn new(name: String, view: &RunView) -> Self {
        let mut mixture = view.mixture();
        let last = mixture.intervals.len().saturating_sub(1);
        let every = last.div_ceil(CHARTED).max(1);
        let mut index = 0..;
        mixture.intervals.retain(|_| {
            let index = index.next().unwrap_or(last);
            index.is_multiple_of(every) || index == last
        });
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
    let mut charts = vec![
        Chart {
            about: "The student's perplexity on each domain's validation documents, divided by the teacher's."
                .to_owned(),
            y_label: "student's over teacher's perplexity".to_owned(),
            panels: vec![Panel {
                level: Some(caught_up()),
                ..panel(course.measured(|line| &line.ratio, |domain| domain.ratio_after))
            }],
            ..named("ratio", "How far behind the student is")
        },
        losses(steps),
        Chart {
            about: "The student's, on each domain's validation documents.".to_owned(),
            y_label: "perplexity".to_owned(),
            log_scale: true,
            panels: vec![panel(course.measured(
                |line| &line.student_perplexity,
                |domain| domain.student_perplexity_after,
            ))],
            ..named("perplexity", "Perplexity")
        },
        Chart {
            about: "How much of the data is drawn from each domain: more where the student is further behind."
                .to_owned(),
            y_label: "weight in the mixture".to_owned(),
            panels: vec![panel(course.weights())],
            ..named("weights", "Mixture")
        },
    ];
    let others = [
        (Scalar::LearningRate, "Learning rate"),
        (Scalar::GradientNorm, "Gradient norm before clipping"),
        (Scalar::TokensPerSecond, "Tokens per second"),
    ];
    charts.extend(others.map(|(scalar, title)| Chart {
        panels: vec![panel(Content::Lines(
            scalar_line(steps, scalar, title).into_iter().collect(),
        ))],
        ..named(&scalar.to_string(), title)
    }));
    charts
}

/// Mean ratio and loss of several runs, one line per run.
pub fn runs_charts(runs: &[RunSeries]) -> Vec<Chart> {
    let ratio = runs.iter().map(|run| {
        let course = run.course();
        let evaluations = course.evaluations().into_iter();
        let measured = evaluations.map(|(x, line)| (x, mean(line.ratio.values())));
        let after = run.mixture.after.as_ref().map(|after| {
            let ratios = after.values().map(|domain| &domain.ratio_after);
            (course.end, mean(ratios))
        });
        Line {
            name: run.name.clone(),
            points: measured.chain(after).collect(),
        }
    });
    let loss = |run: &RunSeries| scalar_line(&run.steps, Scalar::Loss, &run.name);
    vec![
        Chart {
            about: "Mean over the domains of the student's perplexity, divided by the teacher's."
                .to_owned(),
            y_label: "student's over teacher's perplexity".to_owned(),
            panels: vec![Panel {
                level: Some(caught_up()),
                ..panel(Content::Lines(ratio.collect()))
            }],
            ..named("ratio", "How far behind the students are")
        },
        Chart {
            y_label: "nats per prediction".to_owned(),
            panels: vec![panel(Content::Lines(
                runs.iter().filter_map(loss).collect(),
            ))],
            ..named("loss", "Loss")
        },
    ]
}

/// Loss by term. Only TED has layers.
fn losses(steps: &Steps) -> Chart {
    let terms = [
        (Scalar::Loss, "loss"),
        (Scalar::Ce, "cross-entropy"),
        (Scalar::Kl, "KL"),
        (Scalar::Layer, "layers"),
    ];
    let lines = terms
        .iter()
        .filter_map(|(scalar, name)| scalar_line(steps, *scalar, name));
    Chart {
        about: "Means over each step's predictions: loss = cross-entropy + gamma KL, which is KL(teacher || student) \
                or the divergence that `objective.name` says; with TED also a weight times the distance of layers."
            .to_owned(),
        y_label: "nats per prediction".to_owned(),
        panels: vec![panel(Content::Lines(lines.collect()))],
        ..named("loss", "Loss")
    }
}

fn scalar_line(steps: &Steps, scalar: Scalar, name: &str) -> Option<Line> {
    let values = steps.scalars.get(&scalar)?.iter().zip(&steps.step);
    Some(Line {
        name: name.to_owned(),
        points: values
            .filter_map(|(value, step)| Some((*step as f64, (*value)?)))
            .collect(),
    })
}

fn mean<'a>(values: impl ExactSizeIterator<Item = &'a f64>) -> f64 {
    let count = values.len();
    values.sum::<f64>() / count as f64
}

fn named(name: &str, title: &str) -> Chart {
    Chart {
        name: name.to_owned(),
        title: title.to_owned(),
        x_label: "step".to_owned(),
        ..Chart::default()
    }
}

fn panel(content: Content) -> Panel {
    Panel {
        title: String::new(),
        content,
        level: None,
    }
}

/// A ratio of 1.
pub(crate) fn caught_up() -> Level {
    Level {
        name: "caught up".to_owned(),
        value: 1.0,
    }
}
