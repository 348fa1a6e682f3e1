//! From short descriptions of panels to a dashboard: places, looks, the variables.

use super::grafana::*;

/// What a panel shows, in short.
pub struct Spec {
    pub title: &'static str,
    /// What to look for.
    pub look_for: &'static str,
    pub kind: Kind,
    /// Grafana's name of the unit.
    pub unit: &'static str,
    /// An expression and what its curves are called. `@` stands for the chosen runs, `$w` for the interval of rates.
    pub queries: &'static [(&'static str, &'static str)],
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A number, colored by thresholds: green, orange from the first, red from the second on; the other way
    /// round where the second is the smaller.
    Number(f64, f64),
    /// A number without a judgement.
    Plain,
    Lines,
    /// Lines on a logarithmic scale.
    Log,
    /// Areas on top of each other.
    Stacked,
    /// 0 or 1 over time.
    States,
}

pub const ALL_RUNS: &str = "run=~\"$run\"";
pub const RATE: &str = "$__rate_interval";

/// The dashboard of these rows.
pub fn dashboard(rows: &[(&str, &[Spec])]) -> Dashboard {
    let mut panels = Vec::new();
    let mut y = 0;
    let mut id = 0;
    for (title, specs) in rows {
        id += 1;
        let grid_pos = Place {
            h: 1,
            w: 24,
            x: 0,
            y,
        };
        panels.push(Panel::Row {
            id,
            title: (*title).to_owned(),
            collapsed: false,
            grid_pos,
            panels: Vec::new(),
        });
        y += 1;
        let (mut x, mut height) = (0, 0);
        for spec in *specs {
            let (w, h) = match spec.kind {
                Kind::Number(..) | Kind::Plain => (4, 4),
                _ => (8, 8),
            };
            // A line of numbers and a line of graphs do not mix.
            if x + w > 24 || (height != 0 && height != h) {
                (x, y) = (0, y + height);
            }
            id += 1;
            panels.push(panel(spec, id, Place { h, w, x, y }));
            (x, height) = (x + w, h);
        }
        y += height;
    }
    Dashboard {
        title: "DDK".to_owned(),
        description: "Distillation runs of DDK: health, learning, the mixture and why it is what it is, where \
                      the time goes."
            .to_owned(),
        uid: "ddk".to_owned(),
        schema_version: 39,
        version: 1,
        editable: true,
        graph_tooltip: 1,
        refresh: "10s".to_owned(),
        time: Time {
            from: "now-1h".to_owned(),
            to: "now".to_owned(),
        },
        tags: vec!["ddk".to_owned()],
        templating: List {
            list: variables(),
        },
        annotations: List {
            list: vec![Annotation {
                name: "Restorations".to_owned(),
                datasource: source(),
                enable: true,
                icon_color: "red".to_owned(),
                expr: expression("increase(ddk_restorations_total{@}[$w]) > 0"),
                title_format: "{{run}} went back to its last checkpoint ({{reason}})".to_owned(),
            }],
        },
        panels,
    }
}

fn variables() -> Vec<Variable> {
    let query = "label_values(ddk_build_info, run)".to_owned();
    vec![
        Variable::Datasource {
            name: "datasource".to_owned(),
            label: "Data source".to_owned(),
            query: "prometheus".to_owned(),
        },
        Variable::Query {
            name: "run".to_owned(),
            label: "Run".to_owned(),
            datasource: source(),
            query: VariableQuery {
                query: query.clone(),
                ref_id: "run".to_owned(),
            },
            definition: query,
            refresh: 2,
            sort: 1,
            multi: true,
            include_all: true,
            all_value: ".*".to_owned(),
        },
    ]
}

fn source() -> Source {
    Source {
        r#type: "prometheus".to_owned(),
        uid: "${datasource}".to_owned(),
    }
}

fn expression(short: &str) -> String {
    short.replace('@', ALL_RUNS).replace("$w", RATE)
}

fn panel(spec: &Spec, id: u32, place: Place) -> Panel {
    match spec.kind {
        Kind::Number(..) | Kind::Plain => {
            let reduce_options = Reduce {
                calcs: vec!["lastNotNull".to_owned()],
                fields: String::new(),
                values: false,
            };
            let options = StatOptions {
                reduce_options,
                color_mode: "value".to_owned(),
                graph_mode: "area".to_owned(),
                justify_mode: "auto".to_owned(),
                orientation: "auto".to_owned(),
                text_mode: "auto".to_owned(),
            };
            Panel::Stat(Box::new(chart(spec, id, place, options, NoLook {})))
        }
        Kind::States => {
            let options = StateOptions {
                align_value: "left".to_owned(),
                legend: legend(false),
                merge_values: true,
                row_height: 0.9,
                show_value: "never".to_owned(),
                tooltip: tooltip(),
            };
            let look = StateLook {
                line_width: 0,
                fill_opacity: 70,
            };
            Panel::StateTimeline(Box::new(chart(spec, id, place, options, look)))
        }
        Kind::Lines | Kind::Log | Kind::Stacked => {
            let options = CurveOptions {
                legend: legend(true),
                tooltip: tooltip(),
            };
            let stacked = spec.kind == Kind::Stacked;
            let log = spec.kind == Kind::Log;
            let look = Curve {
                line_width: 1,
                fill_opacity: if stacked { 40 } else { 0 },
                show_points: "never".to_owned(),
                span_nulls: false,
                stacking: Stacking {
                    group: "A".to_owned(),
                    mode: if stacked { "normal" } else { "none" }.to_owned(),
                },
                scale_distribution: Scale {
                    r#type: if log { "log" } else { "linear" }.to_owned(),
                    log: log.then_some(10),
                },
            };
            Panel::Timeseries(Box::new(chart(spec, id, place, options, look)))
        }
    }
}

fn chart<Options, Look>(
    spec: &Spec,
    id: u32,
    grid_pos: Place,
    options: Options,
    custom: Look,
) -> Chart<Options, Look> {
    let is_number = matches!(spec.kind, Kind::Number(..) | Kind::Plain);
    let targets = spec
        .queries
        .iter()
        .zip('A'..)
        .map(|((short, name), letter)| Target {
            ref_id: letter.to_string(),
            datasource: source(),
            expr: expression(short),
            legend_format: (*name).to_owned(),
            range: true,
            instant: false,
        });
    Chart {
        id,
        title: spec.title.to_owned(),
        description: spec.look_for.to_owned(),
        datasource: source(),
        grid_pos,
        field_config: FieldConfig {
            defaults: Defaults {
                unit: spec.unit.to_owned(),
                min: (spec.unit == "percentunit").then_some(0.0),
                max: (spec.kind == Kind::States).then_some(1.0),
                color: Color {
                    mode: if is_number || spec.kind == Kind::States {
                        "thresholds"
                    } else {
                        "palette-classic"
                    }
                    .to_owned(),
                },
                thresholds: thresholds(spec.kind),
                custom,
            },
            overrides: Vec::new(),
        },
        options,
        targets: targets.collect(),
    }
}

fn thresholds(kind: Kind) -> Option<Thresholds> {
    let step = |color: &str, value| Threshold {
        color: color.to_owned(),
        value,
    };
    let steps = match kind {
        Kind::Number(orange, red) if orange <= red => vec![
            step("green", None),
            step("orange", Some(orange)),
            step("red", Some(red)),
        ],
        Kind::Number(orange, red) => vec![
            step("red", None),
            step("orange", Some(red)),
            step("green", Some(orange)),
        ],
        Kind::Plain => vec![step("text", None)],
        Kind::States => vec![step("transparent", None), step("green", Some(1.0))],
        Kind::Lines | Kind::Log | Kind::Stacked => return None,
    };
    Some(Thresholds {
        mode: "absolute".to_owned(),
        steps,
    })
}

fn legend(show_legend: bool) -> Legend {
    Legend {
        calcs: vec!["lastNotNull".to_owned()],
        display_mode: "list".to_owned(),
        placement: "bottom".to_owned(),
        show_legend,
    }
}

fn tooltip() -> Tooltip {
    Tooltip {
        mode: "multi".to_owned(),
        sort: "desc".to_owned(),
    }
}
