//! Every metric of DDK, declared once. Names follow Prometheus' conventions: base units, `_total` for counters; no label by
//! step.

use metrics::{Counter, Gauge, Histogram, Label};

/// What a metric is, for its description and for checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The name that Prometheus sees.
    pub name: &'static str,
    /// What it counts or measures.
    pub help: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// Counter, gauge or histogram.
    pub kind: Kind,
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

/// A counter; give a value for each of its labels.
#[derive(Debug)]
pub struct CounterOf(Metric);
/// A gauge; give a value for each of its labels.
#[derive(Debug)]
pub struct GaugeOf(Metric);
/// A histogram; give a value for each of its labels.
#[derive(Debug)]
pub struct HistogramOf(Metric);

fn labels(metric: &Metric, values: &[&str]) -> Vec<Label> {
    debug_assert_eq!(
        metric.labels.len(),
        values.len(),
        "labels of {}",
        metric.name
    );
    metric
        .labels
        .iter()
        .zip(values)
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect()
}

impl CounterOf {
    /// The counter with these values of its labels.
    #[allow(clippy::disallowed_macros)]
    pub fn with(&self, values: &[&str]) -> Counter {
        metrics::counter!(self.0.name, labels(&self.0, values))
    }
}

impl GaugeOf {
    /// The gauge with these values of its labels.
    #[allow(clippy::disallowed_macros)]
    pub fn with(&self, values: &[&str]) -> Gauge {
        metrics::gauge!(self.0.name, labels(&self.0, values))
    }
}

impl HistogramOf {
    /// The histogram with these values of its labels.
    #[allow(clippy::disallowed_macros)]
    pub fn with(&self, values: &[&str]) -> Histogram {
        metrics::histogram!(self.0.name, labels(&self.0, values))
    }
}

/// Declares the handles and the table of all of them.
macro_rules! declare {
    ($($handle:ident: $type:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $handle: $type = $type(Metric { name: $name, help: $help, labels: &[$($label),*], kind: Kind::$kind });
        )*
        /// All metrics.
        pub static ALL: &[&Metric] = &[$(&$handle.0),*];
    };
}

declare! {
    BUILD_INFO: GaugeOf Gauge "ddk_build_info" ["version"] "Always 1; the version that runs.";
    STEPS: CounterOf Counter "ddk_steps_total" [] "Optimizer steps made by this process.";
    STEP: GaugeOf Gauge "ddk_step" [] "The last optimizer step.";
    STEP_LIMIT: GaugeOf Gauge "ddk_step_limit" [] "The step at which the run ends, where it has one.";
    TOKENS: CounterOf Counter "ddk_tokens_total" ["domain"] "Tokens trained on, without padding.";
    TOKENS_PER_SECOND: GaugeOf Gauge "ddk_tokens_per_second" [] "Tokens trained on in a second, over the last step.";
    LOSS: GaugeOf Gauge "ddk_loss" ["term"] "The last step's loss by term (total, ce, kl, and layer with TED), a prediction.";
    GRADIENT_NORM: GaugeOf Gauge "ddk_gradient_norm" [] "The last step's global gradient norm before clipping.";
    LEARNING_RATE: GaugeOf Gauge "ddk_learning_rate" [] "The last step's learning rate.";
    SKIPPED_UPDATES: CounterOf Counter "ddk_skipped_updates_total" [] "Updates that were not made because a loss or gradient was not finite.";
    PERPLEXITY: GaugeOf Gauge "ddk_perplexity" ["model", "domain"] "Perplexity on the domain's validation documents at the last evaluation.";
    RATIO: GaugeOf Gauge "ddk_perplexity_ratio" ["domain"] "Student's over teacher's perplexity at the last evaluation.";
    WEIGHT: GaugeOf Gauge "ddk_mixture_weight" ["domain"] "The domain's weight in the mixture.";
    TARGET: GaugeOf Gauge "ddk_mixture_target" ["domain"] "The domain's share of rows after limits.";
    PASSES: GaugeOf Gauge "ddk_domain_passes" ["domain"] "Passes over the domain so far.";
    MIXTURE_VERSION: GaugeOf Gauge "ddk_mixture_version" [] "The version of the mixture in use: its interval.";
    REFUSED_UPDATES: CounterOf Counter "ddk_mixture_refused_total" [] "Mixture updates refused because a perplexity was not finite.";
    WORKER_BUSY: GaugeOf Gauge "ddk_worker_busy_seconds" ["worker"] "Seconds that the worker has computed.";
    WORKER_STARVED: GaugeOf Gauge "ddk_worker_starved_seconds" ["worker"] "Seconds that the worker has waited for input.";
    WORKER_BLOCKED: GaugeOf Gauge "ddk_worker_blocked_seconds" ["worker"] "Seconds that the worker has waited to hand on its output.";
    WORKER_RESTARTS: CounterOf Counter "ddk_worker_restarts_total" ["worker"] "Times that the worker was built again after a failure.";
    STEP_SECONDS: HistogramOf Histogram "ddk_step_phase_seconds" ["phase"] "Seconds of a step by phase.";
    BOUNDARY_SECONDS: HistogramOf Histogram "ddk_boundary_seconds" [] "Seconds from an interval's last update to the first micro-batch of the next.";
    CHECKPOINT_SECONDS: HistogramOf Histogram "ddk_checkpoint_seconds" [] "Seconds of a save, beside training.";
    CHECKPOINT_STALL: HistogramOf Histogram "ddk_checkpoint_stall_seconds" [] "Seconds that training waited for a snapshot.";
    CHECKPOINT_BYTES: GaugeOf Gauge "ddk_checkpoint_bytes" [] "Bytes of the last checkpoint.";
    CHECKPOINT_STEP: GaugeOf Gauge "ddk_checkpoint_step" [] "The step of the last checkpoint.";
    CHECKPOINT_TIME: GaugeOf Gauge "ddk_checkpoint_timestamp_seconds" [] "When the last checkpoint was complete, seconds since 1970.";
    CHECKPOINT_FAILURES: CounterOf Counter "ddk_checkpoint_failures_total" [] "Saves that failed.";
    QUARANTINED: GaugeOf Gauge "ddk_quarantined_records" ["domain"] "Records of the domain that could not be used.";
    RESIDENT: GaugeOf Gauge "ddk_resident_memory_bytes" [] "Resident memory of the process.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<&str> = ALL.iter().map(|metric| metric.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count, "a name twice");
        for metric in ALL {
            let plain = |character: char| character.is_ascii_lowercase() || character == '_';
            assert!(
                metric.name.starts_with("ddk_") && metric.name.chars().all(plain),
                "{}",
                metric.name
            );
            assert_eq!(
                metric.name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{}",
                metric.name
            );
            assert!(
                metric.kind != Kind::Histogram || metric.name.ends_with("_seconds"),
                "{}",
                metric.name
            );
            assert!(
                metric.help.ends_with('.') && !metric.labels.contains(&"step"),
                "{}",
                metric.name
            );
        }
    }
}
