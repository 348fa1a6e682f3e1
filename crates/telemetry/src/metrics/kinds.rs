//! The declaration of a metric, and the handles that set it.

// Only here: everyone else uses the declared metrics.
#![allow(clippy::disallowed_macros)]

use metrics::{Counter, Gauge, Histogram, Label};

/// The declaration of a metric, for its description and for checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The name that Prometheus sees.
    pub name: &'static str,
    /// The unit of its values.
    pub unit: Unit,
    /// What it counts or measures.
    pub help: &'static str,
    /// Its labels, besides `run`, which every metric has.
    pub labels: &'static [LabelOf],
    /// Counter, gauge or histogram.
    pub kind: Kind,
    /// Whether it is read when the page of metrics is rendered, instead of recorded when something happens.
    pub sampled: bool,
    /// Its panel on the dashboard, if it has one of its own.
    pub panel: Option<Panel>,
}

/// A panel that shows one metric. Its query follows from the metric's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Panel {
    /// The row that it is in.
    pub row: Row,
    /// How it is drawn.
    pub look: Look,
    /// Title.
    pub title: &'static str,
    /// What to look for.
    pub look_for: &'static str,
}

/// A row of the dashboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the rows' titles")]
pub enum Row {
    Health,
    Learning,
    Mixture,
    Throughput,
    Domains,
    Data,
    TeacherOutputs,
    Machine,
}

/// How a panel is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// Lines.
    Lines,
    /// Lines on a logarithmic scale.
    Log,
    /// Areas on top of each other.
    Stacked,
    /// Increase of a counter over five minutes.
    Events,
    /// Seconds per second, as a number of cores.
    Cores,
}

/// A label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelOf {
    /// Its name.
    pub name: &'static str,
    /// Its possible values; empty if they depend on the run.
    pub values: &'static [&'static str],
}

/// Kinds of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// A value that goes up and down.
    Gauge,
    /// Seconds in buckets.
    Histogram,
}

/// The unit of a metric's values. Units are base units, as Prometheus recommends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Things that are counted.
    Count,
    /// Seconds, including seconds since 1970.
    Seconds,
    /// Bytes.
    Bytes,
    /// A share of 1, or one number over another.
    Ratio,
    /// Natural logarithms.
    Nats,
    /// A number without a unit of its own.
    Plain,
}

/// A counter. `with` takes one value per label.
#[derive(Debug)]
pub struct CounterOf(pub(super) Metric);
/// A gauge. `with` takes one value per label.
#[derive(Debug)]
pub struct GaugeOf(pub(super) Metric);
/// A histogram. `with` takes one value per label.
#[derive(Debug)]
pub struct HistogramOf(pub(super) Metric);
/// A metric that is read when the page is rendered, such as memory. Unlike the exporter's counters, it may have
/// fractions.
#[derive(Debug)]
pub struct SampledOf(pub(crate) Metric);

fn labels(metric: &Metric, values: &[&str]) -> Vec<Label> {
    let (name, labels) = (metric.name, metric.labels);
    assert_eq!(labels.len(), values.len(), "labels of {name}");
    let labels = labels.iter().zip(values);
    let label = |(label, value): (&LabelOf, &&str)| Label::new(label.name, (*value).to_owned());
    labels.map(label).collect()
}

impl CounterOf {
    /// Returns the counter with these label values.
    pub fn with(&self, values: &[&str]) -> Counter {
        metrics::counter!(self.0.name, labels(&self.0, values))
    }
}

impl GaugeOf {
    /// Returns the gauge with these label values.
    pub fn with(&self, values: &[&str]) -> Gauge {
        metrics::gauge!(self.0.name, labels(&self.0, values))
    }
}

impl HistogramOf {
    /// Returns the histogram with these label values.
    pub fn with(&self, values: &[&str]) -> Histogram {
        metrics::histogram!(self.0.name, labels(&self.0, values))
    }
}

/// Describes a metric to the installed recorder. Counters with known label values start at 0, so that PromQL's
/// `increase` sees their first increment.
///
/// Does not pass the unit on: the exporter would append it to names that lack it, but the names here already have it,
/// which a test checks.
pub(crate) fn describe(metric: &'static Metric) {
    if metric.sampled {
        return;
    }
    let (name, help) = (metric.name, metric.help);
    match metric.kind {
        Kind::Counter => metrics::describe_counter!(name, help),
        Kind::Gauge => metrics::describe_gauge!(name, help),
        Kind::Histogram => metrics::describe_histogram!(name, help),
    }
    match (metric.kind, metric.labels) {
        (Kind::Counter, []) => metrics::counter!(name).increment(0),
        (Kind::Counter, [label]) => {
            for value in label.values {
                metrics::counter!(name, label.name => *value).increment(0);
            }
        }
        _ => {}
    }
}
