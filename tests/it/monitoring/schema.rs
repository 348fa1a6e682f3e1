//! Checks the committed dashboard against Grafana's published schema (`kinds/dashboard` and the panels'
//! `panelcfg`). The schema gives the keys of each part and their allowed values. The check does not use the types
//! that wrote the dashboard.

use std::collections::BTreeSet;

use serde_json::Value;

use super::committed_dashboard;

/// The values that a key allows.
enum Is {
    /// One of these words.
    Word(&'static [&'static str]),
    /// A number in this inclusive range.
    Number(f64, f64),
    Text,
    Flag,
    Words,
}

use Is::{Flag, Number, Text, Word, Words};

const CALCULATIONS: &[&str] = &["lastNotNull", "last", "first", "min", "max", "mean", "sum"];
const COLORS: &[&str] = &["green", "orange", "red", "yellow", "blue", "transparent"];

/// Paths in a panel and the values allowed there; `*` stands for each entry of a list.
const OF_ALL: &[(&str, Is)] = &[
    ("title", Text),
    ("description", Text),
    ("gridPos.h", Number(1.0, 1000.0)),
    ("gridPos.w", Number(1.0, 24.0)),
    ("gridPos.x", Number(0.0, 23.0)),
    ("gridPos.y", Number(0.0, 10_000.0)),
    ("datasource.type", Word(&["prometheus"])),
    ("datasource.uid", Text),
    (
        "fieldConfig.defaults.unit",
        Word(&["none", "short", "percentunit", "s", "bytes", "sci", "flops"]),
    ),
    (
        "fieldConfig.defaults.color.mode",
        Word(&[
            "thresholds",
            "palette-classic",
            "palette-classic-by-name",
            "fixed",
        ]),
    ),
    ("targets.*.refId", Text),
    ("targets.*.datasource.type", Word(&["prometheus"])),
    ("targets.*.expr", Text),
    ("targets.*.legendFormat", Text),
    ("targets.*.range", Flag),
    ("targets.*.instant", Flag),
];

const THRESHOLDS: &[(&str, Is)] = &[
    (
        "fieldConfig.defaults.thresholds.mode",
        Word(&["absolute", "percentage"]),
    ),
    (
        "fieldConfig.defaults.thresholds.steps.*.color",
        Word(COLORS),
    ),
];

const LEGEND: &[(&str, Is)] = &[
    ("options.legend.calcs", Words),
    (
        "options.legend.displayMode",
        Word(&["list", "table", "hidden"]),
    ),
    ("options.legend.placement", Word(&["bottom", "right"])),
    ("options.legend.showLegend", Flag),
    ("options.tooltip.mode", Word(&["single", "multi", "none"])),
    ("options.tooltip.sort", Word(&["asc", "desc", "none"])),
    ("fieldConfig.defaults.custom.lineWidth", Number(0.0, 10.0)),
    (
        "fieldConfig.defaults.custom.fillOpacity",
        Number(0.0, 100.0),
    ),
];

const STAT: &[(&str, Is)] = &[
    ("options.reduceOptions.calcs", Words),
    ("options.reduceOptions.values", Flag),
    (
        "options.colorMode",
        Word(&["value", "background", "background_solid", "none"]),
    ),
    ("options.graphMode", Word(&["none", "line", "area"])),
    ("options.justifyMode", Word(&["auto", "center"])),
    (
        "options.orientation",
        Word(&["auto", "vertical", "horizontal"]),
    ),
    (
        "options.textMode",
        Word(&["auto", "value", "value_and_name", "name", "none"]),
    ),
];

const TIME_SERIES: &[(&str, Is)] = &[
    (
        "fieldConfig.defaults.custom.showPoints",
        Word(&["auto", "never", "always"]),
    ),
    ("fieldConfig.defaults.custom.spanNulls", Flag),
    (
        "fieldConfig.defaults.custom.stacking.mode",
        Word(&["none", "normal", "percent"]),
    ),
    (
        "fieldConfig.defaults.custom.scaleDistribution.type",
        Word(&["linear", "log", "ordinal", "symlog"]),
    ),
];

const STATE_TIMELINE: &[(&str, Is)] = &[
    ("options.showValue", Word(&["auto", "never", "always"])),
    ("options.alignValue", Word(&["left", "center", "right"])),
    ("options.mergeValues", Flag),
    ("options.rowHeight", Number(0.0, 1.0)),
];

/// The values at a path.
fn at<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    path.split('.').fold(vec![value], |found, key| {
        let below = found.into_iter().flat_map(|value| match key {
            "*" => value.as_array().into_iter().flatten().collect(),
            key => value.get(key).into_iter().collect::<Vec<_>>(),
        });
        below.collect()
    })
}

impl Is {
    fn allows(&self, value: &Value) -> bool {
        match self {
            Self::Word(words) => value.as_str().is_some_and(|word| words.contains(&word)),
            Self::Number(least, most) => value
                .as_f64()
                .is_some_and(|number| (*least..=*most).contains(&number)),
            Self::Text => value.as_str().is_some_and(|text| !text.is_empty()),
            Self::Flag => value.is_boolean(),
            Self::Words => value.as_array().is_some_and(|words| {
                let mut words = words.iter().filter_map(Value::as_str);
                words.all(|word| CALCULATIONS.contains(&word))
            }),
        }
    }
}

#[test]
fn the_dashboard_says_what_grafana_documents() {
    let dashboard = committed_dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert!(dashboard["uid"].as_str().unwrap().len() <= 40);
    assert!(dashboard["graphTooltip"].as_u64().unwrap() <= 2);
    let variables: Vec<&str> = at(&dashboard, "templating.list.*.type")
        .into_iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(variables, ["datasource", "query"]);
    let mut kinds = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let kind = panel["type"].as_str().unwrap();
        kinds.insert(kind);
        let rules: &[&[(&str, Is)]] = match kind {
            "row" => {
                assert!(panel["panels"].as_array().unwrap().is_empty());
                assert_eq!(panel["collapsed"], false);
                continue;
            }
            "stat" => &[OF_ALL, STAT],
            "timeseries" => &[OF_ALL, LEGEND, TIME_SERIES],
            "state-timeline" => &[OF_ALL, LEGEND, THRESHOLDS, STATE_TIMELINE],
            other => panic!("Grafana has no core panel {other}"),
        };
        let title = &panel["title"];
        for (path, allowed) in rules.iter().copied().flatten() {
            let found = at(panel, path);
            assert!(!found.is_empty(), "{title} has no {path}");
            for value in found {
                assert!(allowed.allows(value), "{title}: {path} is {value}");
            }
        }
        // A logarithmic scale has a base; other scales have none.
        let scale = &panel["fieldConfig"]["defaults"]["custom"]["scaleDistribution"];
        if scale["type"] == "log" {
            assert!(scale["log"] == 2 || scale["log"] == 10, "{title}")
        } else {
            assert!(scale.get("log").is_none(), "{title}")
        }
        if panel["fieldConfig"]["defaults"]["color"]["mode"] == "thresholds" {
            let steps = at(panel, "fieldConfig.defaults.thresholds.steps.*.value");
            assert!(steps[0].is_null(), "{title}: the first step has a value");
            let values: Vec<f64> = steps[1..]
                .iter()
                .map(|step| step.as_f64().unwrap())
                .collect();
            assert!(values.is_sorted(), "{title}: {values:?}");
        }
        let names: BTreeSet<_> = at(panel, "targets.*.refId")
            .into_iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(
            names.len(),
            panel["targets"].as_array().unwrap().len(),
            "{title}"
        );
    }
    assert_eq!(
        kinds,
        BTreeSet::from(["row", "stat", "state-timeline", "timeseries"])
    );
}
