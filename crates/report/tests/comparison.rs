//! Tests a comparison of fixed inputs: its text, its page, its figures.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, path::PathBuf};

use ddk_report::{
    ComparedRun, Comparison,
    chart::{Bar, Chart, Content, Level, Panel},
    comparison::{Costs, Group},
    scores::Scores,
};
use ddk_run::{
    records::{ByDomain, DomainSummary, Drawn, MixtureLine, Summary},
    view::{IntervalRecord, Mixture},
};
use insta::assert_snapshot;

fn by_domain(math: f64, prose: f64) -> ByDomain {
    BTreeMap::from([("math".to_owned(), math), ("prose".to_owned(), prose)])
}

fn summary(math: f64, prose: f64, mixture_flops: f64) -> Summary {
    let domain = |before: f64, after: f64, teacher: f64, token_share| DomainSummary {
        student_perplexity_before: before,
        student_perplexity_after: after,
        teacher_perplexity: teacher,
        ratio_before: before / teacher,
        ratio_after: after / teacher,
        gap_before: (before / teacher).ln(),
        gap_after: (after / teacher).ln(),
        token_share,
    };
    let value = serde_json::json!({
        "domains": BTreeMap::from([
            ("math", domain(30.0, math, 5.0, 0.6)),
            ("prose", domain(120.0, prose, 80.0, 0.4)),
        ]),
        "steps": 20, "intervals": 2, "tokens": 81_920, "seconds": 25.0,
        "distill_seconds": 20.0, "tokens_per_second": 4096.0,
        "teacher_busy_seconds": 18.0, "student_busy_seconds": 17.0, "evaluation_seconds": 1.0, "boundary_seconds": 0.8,
        "save_stall_seconds": 0.0, "paused_seconds": 0.0, "overlap": 1.8, "data_wait_share": 0.001,
        "teacher_flops": 2.5e13, "student_flops": 1.4e13,
        "evaluation_flops": 1e11 + mixture_flops, "mixture_flops": mixture_flops,
        "mixture_flops_share": mixture_flops / 3.9e13, "mixture_seconds_share": 0.04, "peak_rss_bytes": 900_000_000,
        "stop_reason": "max_steps", "exported": "last"
    });
    serde_json::from_value(value).unwrap()
}

fn run(method: &str, seed: u64, math: f64, prose: f64) -> ComparedRun {
    let steers = method.starts_with("ddk");
    let mixture = |interval: u64, weight: f64| -> MixtureLine {
        let value = serde_json::json!({
            "interval": interval, "step": interval * 10, "policy": method, "alpha": 0.5,
            "weights": by_domain(weight, 1.0 - weight), "target": by_domain(weight, 1.0 - weight),
            "student_perplexity": by_domain(30.0, 120.0), "teacher_perplexity": by_domain(5.0, 80.0),
            "ratio": by_domain(6.0 / (interval + 1) as f64, 1.5),
            "gap": by_domain((6.0 / (interval + 1) as f64).ln(), 1.5_f64.ln()),
            "evaluated_at_step": if steers { interval * 10 } else { 0 },
        });
        serde_json::from_value(value).unwrap()
    };
    let drawn = || {
        let drawn = Drawn {
            sequences: 100,
            tokens: 12_800,
            epochs: 0.5,
        };
        BTreeMap::from(["math", "prose"].map(|name| (name.to_owned(), drawn)))
    };
    let moves = if steers { 0.1 } else { 0.0 };
    let intervals = (0..3).map(|interval| IntervalRecord {
        mixture: mixture(interval, 0.4 + moves * interval as f64),
        tokens_before: 25_600 * interval,
        drawn: Some(drawn()),
    });
    let summary = summary(math, prose, if steers { 2e11 } else { 0.0 });
    ComparedRun {
        method: method.to_owned(),
        seed,
        folder: PathBuf::from(format!("runs/small/{method}/seed-{seed}")),
        mixture: Mixture {
            intervals: intervals.collect(),
            after: Some(summary.domains.clone()),
        },
        summary,
        phases: Vec::new(),
        scores: Scores::new(),
    }
}

/// Three seeds of three methods: `ddk` is clearly better on math and indistinguishable on prose, `cpt` is worse
/// everywhere.
fn runs() -> Vec<ComparedRun> {
    let mut runs = Vec::new();
    for (seed, wobble) in [(0, 0.0), (1, 0.1), (2, -0.1)] {
        runs.extend([
            run("cpt", seed, 9.0 + wobble, 100.0),
            run("kd", seed, 7.0 + wobble, 90.0 + wobble),
            run("ddk", seed, 6.0 + 1.2 * wobble, 89.5 + 20.0 * wobble),
        ]);
    }
    let doremi = &mut runs[0];
    doremi.phases = vec![Costs {
        student_flops: 6e12,
        seconds: 9.0,
        ..Costs::default()
    }];
    let scores = BTreeMap::from([("acc".to_owned(), 0.25), ("acc_norm".to_owned(), 0.5)]);
    runs[1].scores.insert("arc_easy".to_owned(), scores);
    runs
}

fn comparison(runs: &[ComparedRun], swept: Option<&str>) -> Comparison {
    let mut seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
    seeds.dedup();
    seeds.sort_unstable();
    seeds.dedup();
    let swept = swept.map(str::to_owned);
    let group = Group::new(swept, runs, Some("kd"), Scores::new(), Scores::new());
    Comparison {
        name: "small: 3 methods".to_owned(),
        command: "ddk compare small.toml".to_owned(),
        reference: Some("kd".to_owned()),
        seeds,
        varies_student: false,
        groups: vec![group],
    }
}

#[test]
fn what_is_worse_is_said_as_plainly_as_what_is_better() {
    assert_snapshot!(comparison(&runs(), None).document().markdown());
}

#[test]
fn one_seed_marks_nothing() {
    let one: Vec<ComparedRun> = runs().into_iter().filter(|run| run.seed == 0).collect();
    let text = comparison(&one, Some("objective.gamma = 0.1"))
        .document()
        .markdown();
    assert!(text.contains("One seed") && !text.contains("**") && !text.contains('±'));
    assert!(text.contains("## `objective.gamma = 0.1`"));
    assert!(text.contains("figures/perplexity-objective.gamma-0.1.svg"));
    assert!(text.contains("-1.000"), "the difference itself is there");
}

/// Only the first run evaluates the teacher, for the gaps of all methods.
#[test]
fn the_evaluation_of_the_teacher_is_no_cost_of_the_method_that_ran_first() {
    let mut runs = runs();
    for run in runs.iter_mut().filter(|run| run.method == "kd") {
        run.summary.evaluation_flops += 9e12;
        run.summary.teacher_evaluation_flops = 9e12;
    }
    let text = comparison(&runs, None).document().markdown();
    let costs = text.split("## Cost").nth(1).unwrap();
    let row = |method: &str| {
        let line = costs.lines().find(|line| line.starts_with(method)).unwrap();
        line.split('|').map(str::trim).collect::<Vec<_>>()
    };
    let (kd, ddk) = (row("| kd |"), row("| ddk |"));
    assert_eq!((kd[4], ddk[4]), ("1.000e11", "3.000e11"));
    // 2e11 more than 2.5e13 + 1.4e13 + 1e11.
    assert_eq!((kd[5], ddk[5]), ("+0.00%", "+0.51%"));
}

#[test]
fn the_best_is_marked_only_where_the_interval_excludes_zero() {
    let comparison = comparison(&runs(), None);
    let [_, kd, ddk] = &comparison.groups[0].methods[..] else {
        panic!("three methods");
    };
    // Math: differences -1, -0.98, -1.02. Prose: -0.5, 1.4, -2.4.
    assert_eq!(
        ddk.best_in,
        ["mean_gap", "worst_gap", "clipped_gap", "perplexity.math"]
    );
    let prose = ddk.difference("kd", "perplexity.prose").unwrap();
    assert!(!prose.excludes_zero());
    assert!(kd.best_in.is_empty() && kd.difference("kd", "mean_gap").is_none());
    assert_eq!(ddk.worst_domain, "math");
}

#[test]
fn a_terminal_shows_the_measures_without_marks() {
    let text = comparison(&runs(), None).brief();
    let mut lines = text.lines();
    let header = lines.find(|line| line.starts_with("method")).unwrap();
    assert!(header.contains("mean gap") && header.contains("worst domain's gap"));
    assert_eq!(lines.count(), 3, "{text}");
    assert!(!text.contains("**") && !text.contains('|'), "{text}");
    // The best is marked, and the columns stay in line.
    let column = header.find("worst domain's gap").unwrap();
    for line in text.lines().rev().take(3) {
        let (before, cell) = line
            .char_indices()
            .nth(column)
            .map_or(("", ""), |(at, _)| line.split_at(at));
        assert!(
            before.ends_with(' ') && cell.starts_with(|first: char| first.is_ascii_digit()),
            "{text}"
        );
        assert_eq!(line.contains('*'), line.starts_with("ddk"), "{text}");
    }
}

#[test]
fn figures_are_well_formed_and_show_what_they_are_of() {
    let comparison = comparison(&runs(), None);
    let svgs = comparison.document().svgs().unwrap();
    let names: Vec<&str> = svgs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["perplexity.svg", "gaps.svg", "weights.svg"]);
    for (name, text) in &svgs {
        for tag in ["svg", "text"] {
            let (open, close) = (format!("<{tag}"), format!("</{tag}>"));
            assert_eq!(
                text.matches(&open).count(),
                text.matches(&close).count(),
                "{name}: {tag}"
            );
        }
        assert!(!text.contains("NaN") && !text.contains("inf"), "{name}");
    }
    // In each of two domains, one bar for the student before training and one per method.
    assert_eq!(svgs[0].1.matches("<rect").count(), 2 * 4);
    // Only the method that measures its gaps during the run and changes its mixture has a panel.
    for (_, text) in &svgs[1..] {
        assert!(text.contains("\nddk\n</text>") && !text.contains("\nkd\n</text>"));
    }
}

#[test]
fn the_page_needs_nobody_and_the_json_reads_back() {
    let comparison = comparison(&runs(), None);
    let page = comparison.document().html().unwrap();
    for expected in [
        "aria-label=\"Perplexity of each domain, by method. ",
        "aria-label=\"Gap of each domain, over the tokens trained on. ",
        "aria-label=\"Weight of each domain in the mixture, over the tokens trained on. ",
        "<strong>6.000 ± 0.120</strong>",
        "<code>ddk compare small.toml</code>",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
    for attribute in ["<script src=\"http", "<link href=", "<img src="] {
        assert!(!page.contains(attribute), "{attribute}");
    }
    let value = serde_json::to_value(&comparison).unwrap();
    let difference = &value["groups"][0]["methods"][2]["differences"]["kd"]["perplexity.math"];
    assert_eq!(difference["n"], 3);
    assert!((difference["mean"].as_f64().unwrap() + 1.0).abs() < 1e-12);
    // Sample deviation of -1, -0.98, -1.02 is 0.02; half-width 4.302652729696142 x 0.02 / sqrt(3).
    let high = difference["interval"][1].as_f64().unwrap();
    assert!((high - -0.950_317_245_759_877).abs() < 1e-9, "{high}");
}

/// The value of an attribute of an SVG element.
fn number(element: &str, name: &str) -> f64 {
    let start = format!(" {name}=\"");
    let value = element.split(&start).nth(1).unwrap();
    value.split('"').next().unwrap().parse().unwrap()
}

/// Bars of one domain are never drawn over those of another: each lies in the frame of its own panel.
#[test]
fn bars_of_several_domains_lie_apart() {
    for domains in 1..=7 {
        let bar = |index: u32| Bar {
            name: format!("method {index}"),
            value: 10.0 * f64::from(index + 1),
            error: Some(1.0),
        };
        let panel = |domain: u32| Panel {
            title: format!("domain {domain}"),
            content: Content::Bars((0..4).map(bar).collect()),
            level: Some(Level {
                name: "teacher".to_owned(),
                value: 5.0,
            }),
        };
        let chart = Chart {
            name: "perplexity".to_owned(),
            panels: (0..domains).map(panel).collect(),
            ..Chart::default()
        };
        let text = ddk_report::svg(&chart, ddk_report::WIDTH).unwrap();
        let frames = text.split("data-panels=\"").nth(1).unwrap();
        let frames = frames.split('"').next().unwrap().replace("&quot;", "\"");
        let frames: Vec<serde_json::Value> = serde_json::from_str(&frames).unwrap();
        let frames: Vec<[f64; 4]> = frames
            .iter()
            .map(|frame| {
                ["left", "right", "top", "bottom"].map(|side| frame[side].as_f64().unwrap())
            })
            .collect();
        assert_eq!(frames.len(), domains as usize);
        let mut bars = Vec::new();
        for element in text.split("<rect").skip(1) {
            let [x, y, width, height] =
                ["x", "y", "width", "height"].map(|name| number(element, name));
            bars.push([x, x + width, y, y + height]);
        }
        assert_eq!(bars.len(), 4 * frames.len());
        for (frame, of_frame) in frames.iter().zip(bars.chunks(4)) {
            for bar in of_frame {
                let inside = bar[0] >= frame[0]
                    && bar[1] <= frame[1]
                    && bar[2] >= frame[2]
                    && bar[3] <= frame[3] + 1.0;
                assert!(inside && bar[1] > bar[0], "{bar:?} in {frame:?}");
            }
        }
        let both = |index: usize, all: &[[f64; 4]]| -> bool {
            let overlap = |a: &[f64; 4], b: &[f64; 4]| {
                a[0] < b[1] && b[0] < a[1] && a[2] < b[3] && b[2] < a[3]
            };
            all[index + 1..]
                .iter()
                .any(|other| overlap(&all[index], other))
        };
        assert!(
            (0..bars.len()).all(|index| !both(index, &bars)),
            "{domains}"
        );
        assert!((0..frames.len()).all(|index| !both(index, &frames)));
    }
}
