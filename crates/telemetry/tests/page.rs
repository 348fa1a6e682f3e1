//! The page of a run shows each of its charts.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use ddk_report::{RunSeries, WIDTH, charts, svg};
use ddk_run::view::RunView;

const HTML: &str = include_str!("../../../dashboards/page/run.html");
const SCRIPT: &str = include_str!("../../../dashboards/page/run.js");
const API: &str = include_str!("../../../docs/api.md");

/// The texts between `before` and `after`.
fn between<'a>(text: &'a str, before: &str, after: char) -> BTreeSet<&'a str> {
    let parts = text.split(before).skip(1);
    parts
        .map(|part| part.split(after).next().unwrap())
        .collect()
}

#[test]
fn the_page_and_its_documentation_name_every_chart() {
    let folder = tempfile::tempdir().unwrap();
    let series = RunSeries::new("run".to_owned(), &RunView::read(folder.path()));
    let charts = charts(&series);
    let expected: BTreeSet<&str> = charts.iter().map(|chart| chart.name.as_str()).collect();
    assert!(expected.len() > 5);
    for chart in &charts {
        // Before the first evaluation there is no perplexity, which a logarithmic axis must survive.
        assert!(
            svg(chart, WIDTH).unwrap().starts_with("<svg "),
            "{}",
            chart.name
        );
    }

    let ids = between(HTML, "id=\"", '"').into_iter();
    let elements: BTreeSet<_> = ids.filter_map(|id| id.strip_suffix("-chart")).collect();
    assert_eq!(elements, expected, "elements of run.html");
    let list = SCRIPT.split("const CHARTS = {").nth(1).unwrap();
    let list = list.split("};").next().unwrap();
    let drawn: BTreeSet<&str> = list.split('\'').skip(1).step_by(2).collect();
    assert_eq!(drawn, expected, "CHARTS of run.js");
    let section = API.split("### `/api/chart/CHART.svg`").nth(1).unwrap();
    let sentence = section.split("`?width=N`").next().unwrap();
    let documented: BTreeSet<&str> = sentence.split('`').skip(1).step_by(2).collect();
    assert_eq!(documented, expected, "docs/api.md");
}
