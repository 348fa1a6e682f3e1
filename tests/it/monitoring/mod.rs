//! Prometheus and Grafana: the files of `dashboards/`, and what a real Prometheus makes of them.

mod files;
mod grafana;
mod layout;
mod needs_prometheus;
mod panels;
mod schema;

use std::path::PathBuf;

use promql_parser::{
    parser::{self, Expr, VectorSelector},
    util::{ExprVisitor, walk_expr},
};

use self::{grafana::Dashboard, layout::ALL_RUNS, layout::RATE};

/// A file of the repository.
fn repository(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The committed dashboard.
fn dashboard() -> Dashboard {
    let text = std::fs::read_to_string(repository("dashboards/ddk.json")).unwrap();
    let mut read = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut read).unwrap()
}

/// Every expression of the dashboard with the title of its panel, its variables replaced by these.
fn expressions(dashboard: &Dashboard, runs: &str, rate: &str) -> Vec<(String, String)> {
    let plain = |text: &str| text.replace(ALL_RUNS, runs).replace(RATE, rate);
    let of_panels = dashboard.panels.iter().filter_map(|panel| panel.content());
    let of_panels = of_panels.flat_map(|(title, _, targets)| {
        let targets = targets.iter();
        targets.map(move |target| (title.to_owned(), target.expr.clone()))
    });
    let marks = dashboard.annotations.list.iter();
    of_panels
        .chain(marks.map(|mark| (mark.name.clone(), mark.expr.clone())))
        .map(|(title, text)| (title, plain(&text)))
        .collect()
}

/// What an expression reads.
fn selectors(expression: &str) -> Vec<VectorSelector> {
    struct Gather(Vec<VectorSelector>);
    impl ExprVisitor for Gather {
        type Error = std::convert::Infallible;

        fn pre_visit(&mut self, part: &Expr) -> Result<bool, Self::Error> {
            match part {
                Expr::VectorSelector(selector) => self.0.push(selector.clone()),
                Expr::MatrixSelector(matrix) => self.0.push(matrix.vs.clone()),
                _ => {}
            }
            Ok(true)
        }
    }
    let parsed = parser::parse(expression)
        .unwrap_or_else(|error| panic!("{expression} is no PromQL: {error}"));
    let mut gather = Gather(Vec::new());
    let Ok(_) = walk_expr(&mut gather, &parsed);
    gather.0
}

/// The metric's name in the registry: that of a histogram without what Prometheus adds.
fn registered(name: &str) -> &str {
    let of_histogram = ["_bucket", "_sum", "_count"]
        .iter()
        .filter_map(|end| name.strip_suffix(end));
    let is_registered = |name: &&str| {
        ddk_telemetry::metrics::ALL
            .iter()
            .any(|metric| metric.name == *name)
    };
    of_histogram.into_iter().find(is_registered).unwrap_or(name)
}
