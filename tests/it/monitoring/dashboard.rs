//! Generates the Grafana dashboard: one panel per metric that declares one, plus panels that show several metrics.

use ddk_telemetry::metrics::{self, Kind, Look, Metric, Row, Unit};
use serde_json::{Value, json};

/// Selects the runs that the reader chose.
pub const RUNS: &str = "run=~\"$run\"";
/// The window of a rate: a few scrapes.
pub const RATE: &str = "$__rate_interval";

/// Rows in order, with their titles.
const ROWS: [(Row, &str); 8] = [
    (Row::Health, "Health"),
    (Row::Learning, "Learning"),
    (Row::Mixture, "Mixture"),
    (Row::Throughput, "Throughput, and where the time goes"),
    (Row::Domains, "Domains"),
    (Row::Data, "Data"),
    (Row::TeacherOutputs, "Teacher servers and cache"),
    (Row::Machine, "Machine"),
];

/// A short description of a panel.
struct Spec {
    title: &'static str,
    look_for: &'static str,
    draw: Draw,
    /// Grafana's name for the unit.
    unit: &'static str,
    /// Expressions with their legends. `@` stands for the chosen runs, `$w` for the window of a rate.
    queries: Vec<(String, String)>,
}

/// How a panel draws its values.
#[derive(Clone, Copy, PartialEq)]
enum Draw {
    /// A number: green at first, orange from the first value on, red from the second. If the second is smaller: red
    /// at first, orange from the second value on, green from the first.
    Number(f64, f64),
    /// A number without threshold colors.
    Plain,
    /// 0 or 1 over time.
    States,
    Lines(Look),
}

/// Row, title, what to look for, how it is drawn, unit, queries with their legends.
type Composed = (
    Row,
    &'static str,
    &'static str,
    Draw,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// Panels of several metrics, or of one metric compared with the current time.
#[rustfmt::skip]
const COMPOSED: &[Composed] = &[
    (Row::Health, "Training", "1 while the run trains; 0 while it starts, ends, or rewinds.",
     Draw::Number(1.0, 0.5), "none", &[("ddk_ready{@}", "{{run}}")]),
    (Row::Health, "Done", "Share of the run's steps that are done.",
     Draw::Plain, "percentunit", &[("ddk_step{@} / ddk_max_steps{@}", "{{run}}")]),
    (Row::Health, "Time left", "At the speed of the last ten minutes. A run that also ends by max_tokens or \
      target_gap may \
      end earlier.",
     Draw::Plain, "s", &[("(ddk_max_steps{@} - ddk_step{@}) / rate(ddk_steps_total{@}[10m])", "{{run}}")]),
    (Row::Health, "Last checkpoint", "What a crash would cost. It rises to the time between two checkpoints and \
      falls to \
      0. If it keeps rising, checkpoints fail or hang.",
     Draw::Plain, "s", &[("time() - ddk_checkpoint_timestamp_seconds{@}", "{{run}}")]),
    (Row::Health, "Incidents in an hour", "Restarts, rewinds, refused mixtures, failed checkpoints. 0 is normal. \
      events.jsonl of the run describes each.",
     Draw::Number(1.0, 5.0), "none", &[(
        "sum by (run) (increase(ddk_worker_restarts_total{@}[1h])) + on (run) sum by (run) \
         (increase(ddk_rewinds_total{@}[1h])) + on (run) sum by (run) (increase(ddk_mixture_refused_total{@}[1h])) \
         + on (run) sum by (run) (increase(ddk_checkpoint_failures_total{@}[1h]))", "{{run}}")]),
    (Row::Health, "Alerts", "Alerts of DDK that fire now. docs/runbook.md says for each what it means and what to do.",
     Draw::Number(1.0, 3.0), "none",
     &[("count(ALERTS{alertname=~\"Ddk.*\", alertstate=\"firing\"}) or vector(0)", "alerts")]),
    (Row::Health, "Progress", "Steps done, the last checkpoint, and the step at which the run ends. A flat line is a \
      run \
      that stands still.",
     Draw::Lines(Look::Lines), "none", &[("ddk_step{@}", "{{run}} done"), ("ddk_checkpoint_step{@}", "{{run}} saved"),
        ("ddk_max_steps{@}", "{{run}} end")]),
    (Row::Health, "Incidents", "What went wrong, by kind. Each point is the last five minutes.",
     Draw::Lines(Look::Lines), "none", &[
        ("sum by (run, worker) (increase(ddk_worker_restarts_total{@}[5m]))", "{{run}} {{worker}} restarted"),
        ("sum by (run, reason) (increase(ddk_rewinds_total{@}[5m]))", "{{run}} rewound: {{reason}}"),
        ("increase(ddk_checkpoint_failures_total{@}[5m])", "{{run}} checkpoint failed")]),
    (Row::Mixture, "Weights and their limits", "The mixture cannot help a domain at the cap; one at the floor is done. \
      alpha sets both.",
     Draw::Lines(Look::Lines), "percentunit",
     &[("ddk_mixture_weight{@}", "{{run}} {{domain}}"), ("ddk_mixture_weight_limit{@}", "{{run}} {{limit}}")]),
    (Row::Mixture, "Observed minus target", "Near 0 at the end of each interval: the quota is exact in sequences. \
      Before \
      that, and by padding, it is off by a little.",
     Draw::Lines(Look::Lines), "percentunit",
     &[("ddk_mixture_observed{@} - ddk_mixture_target{@}", "{{run}} {{domain}}")]),
    (Row::Throughput, "Tokens per second", "Flat. A drop with a busy teacher is a slow teacher; with a teacher that \
      waits \
      for input, slow data. Dips at the ends of intervals are evaluations.",
     Draw::Lines(Look::Lines), "none", &[("sum by (run) (rate(ddk_tokens_total{@}[$w]))", "{{run}}"),
        ("ddk_tokens_per_second{@}", "{{run}} last step")]),
    (Row::Throughput, "Where a step's time goes", "Share of the student's time by phase. teacher_wait: the teacher \
      is the \
      slower one. data: sequences come too slowly. The rest is the student's own work.",
     Draw::Lines(Look::Stacked), "percentunit", &[(
        "rate(ddk_step_phase_seconds_sum{@, phase!=\"teacher\"}[$w]) / on (run, instance, job) group_left () \
         rate(ddk_step_seconds_sum{@}[$w])", "{{run}} {{phase}}")]),
    (Row::Throughput, "Mean time by phase", "Seconds of a step in each phase; teacher is beside the student, not \
      before \
      it.",
     Draw::Lines(Look::Log), "s", &[(
        "rate(ddk_step_phase_seconds_sum{@}[$w]) / rate(ddk_step_phase_seconds_count{@}[$w])", "{{run}} {{phase}}")]),
    (Row::Throughput, "Workers: state", "Green while the worker computes. Teacher and student should be green nearly \
      all \
      the time, side by side.",
     Draw::States, "none", &[("ddk_worker_state{@, state=\"computing\"}", "{{run}} {{worker}}")]),
    (Row::Throughput, "Workers: waiting", "Input: waiting for the worker before it. Output: waiting for the worker \
      after \
      it. The slowest worker does neither.",
     Draw::Lines(Look::Lines), "percentunit", &[
        ("rate(ddk_worker_input_wait_seconds_total{@}[$w])", "{{run}} {{worker}} input"),
        ("rate(ddk_worker_output_wait_seconds_total{@}[$w])", "{{run}} {{worker}} output")]),
    (Row::Throughput, "Queue throughput", "Items per second. In and out are equal in the long run.",
     Draw::Lines(Look::Lines), "none", &[("rate(ddk_queue_sent_total{@}[$w])", "{{run}} {{queue}} in"),
        ("rate(ddk_queue_received_total{@}[$w])", "{{run}} {{queue}} out")]),
    (Row::Machine, "Memory", "Resident memory is flat after the first interval. A slope over hours is a leak.",
     Draw::Lines(Look::Lines), "bytes", &[("ddk_resident_memory_bytes{@}", "{{run}} now"),
        ("ddk_peak_resident_memory_bytes{@}", "{{run}} peak")]),
    (Row::Machine, "Open files", "Flat, far below the limit.",
     Draw::Lines(Look::Log), "none", &[("ddk_open_files{@}", "{{run}} open"),
        ("ddk_open_files_limit{@}", "{{run}} limit")]),
    (Row::Machine, "Disk", "Room for at least three more checkpoints.",
     Draw::Lines(Look::Log), "bytes", &[("ddk_disk_free_bytes{@}", "{{run}} free"),
        ("ddk_disk_size_bytes{@}", "{{run}} size"), ("ddk_checkpoint_bytes{@}", "{{run}} checkpoint")]),
    (Row::Machine, "GPU memory", "Flat after the first interval, with some room to its size. Empty without a GPU.",
     Draw::Lines(Look::Lines), "bytes", &[("ddk_device_memory_used_bytes{@}", "{{run}} gpu {{device}}"),
        ("ddk_device_memory_size_bytes{@}", "{{run}} gpu {{device}} size")]),
    (Row::Machine, "Versions", "Which program runs, and since when.",
     Draw::Lines(Look::Lines), "s", &[(
        "(time() - ddk_start_timestamp_seconds{@}) * on (run, instance, job) group_left (version) ddk_build_info{@}",
        "{{run}} {{version}} up")]),
];

/// The panel that a metric declares.
fn of_metric(metric: &'static Metric) -> Option<(Row, Spec)> {
    let panel = metric.panel?;
    let name = metric.name;
    let labels = metric
        .labels
        .iter()
        .map(|label| format!(" {{{{{}}}}}", label.name));
    let legend = format!("{{{{run}}}}{}", labels.collect::<String>());
    let by = metric
        .labels
        .iter()
        .map(|label| format!("{}, ", label.name));
    let by = by.collect::<String>();
    let quantile = |share: f64, called: &str| {
        let rate = format!("sum by (run, {by}le) (rate({name}_bucket{{@}}[$w]))");
        (
            format!("histogram_quantile({share}, {rate})"),
            format!("{legend} {called}"),
        )
    };
    let query = match (metric.kind, panel.look) {
        (Kind::Counter, Look::Events) => format!("increase({name}{{@}}[5m])"),
        (Kind::Counter, _) => format!("rate({name}{{@}}[$w])"),
        _ if name.ends_with("_timestamp_seconds") => format!("time() - {name}{{@}}"),
        _ => format!("{name}{{@}}"),
    };
    let unit = match (metric.unit, metric.kind, panel.look) {
        (Unit::Seconds, Kind::Counter, Look::Cores) => "none",
        (Unit::Seconds, Kind::Counter, _) | (Unit::Ratio, ..) => "percentunit",
        (Unit::Seconds, ..) => "s",
        (Unit::Bytes, ..) => "bytes",
        _ if name.ends_with("flops_per_second") => "flops",
        _ => "none",
    };
    let queries = match metric.kind {
        Kind::Histogram => vec![quantile(0.5, "median"), quantile(0.95, "p95")],
        _ => vec![(query, legend.clone())],
    };
    let spec = Spec {
        title: panel.title,
        look_for: panel.look_for,
        draw: Draw::Lines(panel.look),
        unit,
        queries,
    };
    Some((panel.row, spec))
}

/// The whole dashboard, as `dashboards/ddk.json` holds it.
pub fn generate() -> Value {
    let owned = |(one, other): &(&str, &str)| ((*one).to_owned(), (*other).to_owned());
    let composed = COMPOSED
        .iter()
        .map(|&(row, title, look_for, draw, unit, queries)| {
            let queries = queries.iter().map(owned).collect();
            (
                row,
                Spec {
                    title,
                    look_for,
                    draw,
                    unit,
                    queries,
                },
            )
        });
    let declared = metrics::ALL.iter().copied().filter_map(of_metric);
    let mut specs: Vec<(Row, Spec)> = composed.chain(declared).collect();
    let (mut panels, mut y) = (Vec::new(), 0);
    for (row, title) in ROWS {
        let id = panels.len() + 1;
        panels.push(json!({
            "type": "row", "id": id, "title": title, "collapsed": false, "panels": [],
            "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
        }));
        y += 1;
        let (of_row, rest): (Vec<_>, Vec<_>) = specs.into_iter().partition(|(of, _)| *of == row);
        specs = rest;
        let (mut x, mut height) = (0, 0);
        for (_, spec) in of_row {
            let (w, h) = match spec.draw {
                Draw::Number(..) | Draw::Plain => (4, 4),
                _ => (8, 8),
            };
            // Number panels and graph panels never share a line.
            if x + w > 24 || (height != 0 && height != h) {
                (x, y) = (0, y + height);
            }
            let place = json!({"h": h, "w": w, "x": x, "y": y});
            panels.push(panel(&spec, panels.len() + 1, place));
            (x, height) = (x + w, h);
        }
        y += height;
    }
    let runs = "label_values(ddk_build_info, run)";
    json!({
        "title": "DDK",
        "description": "Distillation runs of DDK: health, learning, the mixture, and where the time goes.",
        "uid": "ddk", "schemaVersion": 39, "version": 1, "editable": true, "tags": ["ddk"],
        // All panels share the crosshair.
        "graphTooltip": 1,
        "refresh": "10s", "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
            {"type": "query", "name": "run", "label": "Run", "datasource": source(),
             "query": {"query": runs, "refId": "run"}, "definition": runs,
             // Refresh when the time range changes; sort by name.
             "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*"},
        ]},
        "annotations": {"list": [{
            "name": "Rewinds", "datasource": source(), "enable": true, "iconColor": "red",
            "expr": expression("increase(ddk_rewinds_total{@}[$w]) > 0"),
            "titleFormat": "{{run}} rewound to its last checkpoint ({{reason}})",
        }]},
        "panels": panels,
    })
}

fn source() -> Value {
    json!({"type": "prometheus", "uid": "${datasource}"})
}

fn expression(short: &str) -> String {
    short.replace('@', RUNS).replace("$w", RATE)
}

fn panel(spec: &Spec, id: usize, place: Value) -> Value {
    let legend = |shown: bool| {
        let calcs = ["lastNotNull"];
        json!({"calcs": calcs, "displayMode": "list", "placement": "bottom", "showLegend": shown})
    };
    let tooltip = json!({"mode": "multi", "sort": "desc"});
    let is_stacked = spec.draw == Draw::Lines(Look::Stacked);
    let is_log = spec.draw == Draw::Lines(Look::Log);
    let (kind, custom, options) = match spec.draw {
        Draw::Number(..) | Draw::Plain => (
            "stat",
            json!({}),
            json!({
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false}, "colorMode": "value",
                "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
            }),
        ),
        Draw::States => (
            "state-timeline",
            json!({"lineWidth": 0, "fillOpacity": 70}),
            json!({
                "alignValue": "left", "legend": legend(false), "mergeValues": true, "rowHeight": 0.9,
                "showValue": "never", "tooltip": tooltip,
            }),
        ),
        Draw::Lines(_) => (
            "timeseries",
            json!({
                "lineWidth": 1, "fillOpacity": if is_stacked { 40 } else { 0 }, "showPoints": "never",
                "spanNulls": false,
                "stacking": {"group": "A", "mode": if is_stacked { "normal" } else { "none" }},
                "scaleDistribution":
                    if is_log { json!({"type": "log", "log": 10}) } else { json!({"type": "linear"}) },
            }),
            json!({"legend": legend(true), "tooltip": tooltip}),
        ),
    };
    let color = if matches!(spec.draw, Draw::Lines(_)) {
        "palette-classic"
    } else {
        "thresholds"
    };
    let mut defaults = json!({"unit": spec.unit, "color": {"mode": color}, "custom": custom});
    if spec.unit == "percentunit" {
        defaults["min"] = json!(0.0);
    }
    if spec.draw == Draw::States {
        defaults["max"] = json!(1.0);
    }
    let steps = match spec.draw {
        Draw::Number(orange, red) if orange <= red => {
            vec![
                ("green", None),
                ("orange", Some(orange)),
                ("red", Some(red)),
            ]
        }
        Draw::Number(green, orange) => {
            vec![
                ("red", None),
                ("orange", Some(orange)),
                ("green", Some(green)),
            ]
        }
        Draw::Plain => vec![("text", None)],
        Draw::States => vec![("transparent", None), ("green", Some(1.0))],
        Draw::Lines(_) => Vec::new(),
    };
    if !steps.is_empty() {
        let step = |(color, value): &(&str, Option<f64>)| json!({"color": color, "value": value});
        let steps: Vec<Value> = steps.iter().map(step).collect();
        defaults["thresholds"] = json!({"mode": "absolute", "steps": steps});
    }
    let queries = spec.queries.iter().zip('A'..);
    let targets = queries.map(|((short, legend), letter)| {
        json!({
            "refId": letter, "datasource": source(), "expr": expression(short), "legendFormat": legend,
            "range": true, "instant": false,
        })
    });
    json!({
        "type": kind, "id": id, "title": spec.title, "description": spec.look_for, "datasource": source(),
        "gridPos": place, "fieldConfig": {"defaults": defaults, "overrides": []}, "options": options,
        "targets": targets.collect::<Vec<_>>(),
    })
}
