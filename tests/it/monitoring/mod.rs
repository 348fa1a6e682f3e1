//! Prometheus and Grafana: the files of `dashboards/`, and what a real Prometheus makes of them.

mod dashboard;
mod files;
mod needs_prometheus;
mod schema;

use std::path::PathBuf;

use promql_parser::{
    parser::{self, Expr, VectorSelector},
    util::{ExprVisitor, walk_expr},
};

use serde_json::Value;

use self::dashboard::{RATE, RUNS};

/// The path of a file in the repository.
fn repository(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The committed dashboard.
fn committed_dashboard() -> Value {
    let text = std::fs::read_to_string(repository("dashboards/ddk.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Every expression of the dashboard with its panel's title. `runs` and `rate` replace the variables.
fn expressions(dashboard: &Value, runs: &str, rate: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let of_panels = list(&dashboard["panels"]).into_iter().flat_map(|panel| {
        let title = text(&panel["title"]);
        let targets = list(&panel["targets"]);
        targets
            .into_iter()
            .map(move |target| (title.clone(), text(&target["expr"])))
    });
    let marks = list(&dashboard["annotations"]["list"]);
    let of_marks = marks
        .iter()
        .map(|mark| (text(&mark["name"]), text(&mark["expr"])));
    of_panels
        .chain(of_marks)
        .map(|(title, query)| (title, query.replace(RUNS, runs).replace(RATE, rate)))
        .collect()
}

/// The selectors of the series that an expression reads.
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

/// The metric's name in the registry. For a histogram, this drops the suffix that Prometheus adds.
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
