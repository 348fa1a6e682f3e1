//! Writes sampled metrics, which are read when the page is rendered, in Prometheus' text format.

use std::fmt::Write;

use metrics_exporter_prometheus::formatting::sanitize_label_value as escape;

use crate::metrics::{Kind, SampledOf};

/// A page of samples; every line has the label `run`.
pub(crate) struct Samples<'a> {
    /// The whole page so far.
    pub(crate) page: String,
    run: &'a str,
}

impl<'a> Samples<'a> {
    /// Appends to `page`.
    pub(crate) fn new(page: String, run: &'a str) -> Self {
        Self { page, run }
    }

    /// Adds all samples of a metric, each with its label values and its value. Adds nothing if there are none.
    pub(crate) fn add<'b>(
        &mut self,
        metric: &SampledOf,
        samples: impl IntoIterator<Item = (Vec<&'b str>, f64)>,
    ) {
        let SampledOf(metric) = metric;
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge | Kind::Histogram => "gauge",
        };
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let (name, help) = (metric.name, metric.help);
        let _ = write!(self.page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (values, value) in samples {
            assert_eq!(metric.labels.len(), values.len(), "{name}");
            let _ = write!(self.page, "{name}{{run=\"{}\"", escape(self.run));
            for (label, value) in metric.labels.iter().zip(values) {
                let _ = write!(self.page, ",{}=\"{}\"", label.name, escape(value));
            }
            let _ = writeln!(self.page, "}} {value}");
        }
        self.page.push('\n');
    }

    /// Adds the sample of a metric without labels, if its value is known.
    pub(crate) fn add_one(&mut self, metric: &SampledOf, value: Option<f64>) {
        self.add(metric, value.map(|value| (Vec::new(), value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics;

    #[test]
    fn labels_are_escaped_and_nothing_is_nothing() {
        let mut samples = Samples::new(String::new(), "a\"b\\c");
        samples.add_one(&metrics::DISK_FREE, None);
        samples.add(
            &metrics::WORKER_BUSY,
            [(vec!["loader-x\ny"], 1.5), (vec!["student"], 2.0)],
        );
        assert_eq!(
            samples.page,
            "# HELP ddk_worker_busy_seconds_total Seconds that the worker has spent computing.\n\
             # TYPE ddk_worker_busy_seconds_total counter\n\
             ddk_worker_busy_seconds_total{run=\"a\\\"b\\\\c\",worker=\"loader-x\\ny\"} 1.5\n\
             ddk_worker_busy_seconds_total{run=\"a\\\"b\\\\c\",worker=\"student\"} 2\n\n"
        );
    }
}
