//! Tests the table and the page made from the files of a small run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeMap, fs, path::Path};

use ddk_report::{WIDTH, run_report, svg, table};
use ddk_run::{
    RunView,
    records::{
        ByDomain, DomainSummary, EventKind, EventLine, MixtureLine, Serial, StepRecord, StopReason,
        Summary,
    },
};
use insta::assert_snapshot;

fn by_domain(math: f64, prose: f64) -> ByDomain {
    BTreeMap::from([("math".to_owned(), math), ("prose".to_owned(), prose)])
}

fn summary() -> Summary {
    let domain = DomainSummary {
        student_perplexity_before: 30.0,
        student_perplexity_after: 22.5,
        teacher_perplexity: 20.0,
        ratio_before: 1.5,
        ratio_after: 1.125,
        gap_before: 1.5_f64.ln(),
        gap_after: 1.125_f64.ln(),
        token_share: 0.5,
    };
    Summary {
        domains: BTreeMap::from([("math".to_owned(), domain), ("prose".to_owned(), domain)]),
        steps: 20,
        intervals: 2,
        tokens: 81_920,
        seconds: 25.0,
        distill_seconds: 20.0,
        tokens_per_second: 4096.0,
        teacher_busy_seconds: 18.0,
        student_busy_seconds: 17.0,
        evaluation_seconds: 1.0,
        boundary_seconds: 0.8,
        save_stall_seconds: 0.05,
        paused_seconds: 0.0,
        overlap: 1.8,
        data_wait_share: 0.001,
        teacher_flops: 2.5e13,
        teacher_flops_saved: 0.0,
        teacher_head_flops: 0.0,
        student_flops: 1.4e13,
        evaluation_flops: 3e11,
        teacher_evaluation_flops: 5e10,
        mixture_flops: 2e11,
        mixture_flops_share: 2e11 / 3.9e13,
        mixture_seconds_share: 0.04,
        peak_rss_bytes: 900_000_000,
        stop_reason: StopReason::MaxSteps,
        exported: "last, in runs/small/student".to_owned(),
        exported_step: Some(12),
        serial: Some(Serial {
            threads: 2,
            steps: 5,
            tokens_per_second: 4000.0,
        }),
    }
}

fn write_run(folder: &Path) {
    let mixture = |interval: u64, math: f64| MixtureLine {
        interval,
        step: interval * 10,
        policy: "ddk".to_owned(),
        alpha: Some(0.5),
        weights: by_domain(math, 1.0 - math),
        target: by_domain(math, 1.0 - math),
        previous_weights: None,
        student_perplexity: by_domain(30.0, 28.0),
        teacher_perplexity: by_domain(20.0, 20.0),
        ratio: by_domain(1.5, 1.4),
        gap: by_domain(1.5_f64.ln(), 1.4_f64.ln()),
        evaluated_at_step: interval * 10,
        discrepancy: None,
        losses: None,
        reference: None,
        excess: None,
        mean_weights: None,
        refused: None,
    };
    let lines = |values: Vec<String>| values.join("\n") + "\n";
    let mixtures =
        [mixture(0, 0.4), mixture(1, 0.6125)].map(|line| serde_json::to_string(&line).unwrap());
    fs::write(folder.join("mixture.jsonl"), lines(mixtures.to_vec())).unwrap();
    let steps = (1..=20).map(|step| {
        let line = StepRecord {
            step,
            loss: 4.0 / step as f64,
            ce_loss: 3.0 / step as f64,
            kd_loss: 5.0 / step as f64,
            gamma: 0.2,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            tokens: 4096,
            interval: (step - 1) / 10,
            ..StepRecord::default()
        };
        serde_json::to_string(&line).unwrap()
    });
    fs::write(folder.join("run.jsonl"), lines(steps.collect())).unwrap();
    let event = |kind: EventKind, message: &str| EventLine {
        time: 100.5,
        step: 3,
        kind,
        message: message.to_owned(),
    };
    let events = [
        event(
            EventKind::Started,
            "process 1 on trainer (2 CPUs), ddk 0.1.0",
        ),
        event(EventKind::Saved, "12 bytes in 0.01 s"),
        event(
            EventKind::Restarted,
            "loader-math is restarted: it panicked",
        ),
    ]
    .map(|event| serde_json::to_string(&event).unwrap());
    fs::write(folder.join("events.jsonl"), lines(events.to_vec())).unwrap();
    fs::write(
        folder.join("config.toml"),
        "[run]\nname = \"a <small> run\"\n[teacher]\nmodel = \"models/large\"\n[student]\nmodel = \"models/tiny\"\n",
    )
    .unwrap();
}

#[test]
fn a_run_that_did_not_update_its_mixture_has_no_cost_of_updates() {
    let line = "evaluations that set mixtures";
    assert!(table(&summary()).contains(line));
    let short = Summary {
        intervals: 1,
        ..summary()
    };
    let fixed = Summary {
        mixture_flops: 0.0,
        ..summary()
    };
    for summary in [short, fixed] {
        assert!(!table(&summary).contains(line));
    }
}

#[test]
fn the_table_says_it_all() {
    assert_snapshot!(table(&summary()));
}

#[test]
fn one_of_a_kind_is_singular_and_a_low_overlap_is_explained() {
    let short = Summary {
        steps: 1,
        intervals: 1,
        overlap: 0.93,
        ..summary()
    };
    let text = table(&short);
    assert!(
        text.contains("1 step in 1 interval on 81920 tokens"),
        "{text}"
    );
    assert!(
        text.contains("overlap 0.93 (below 1: at times, neither model computed, for example while"),
        "{text}"
    );
}

#[test]
fn the_page_holds_the_figures_and_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path());
    let changed = [("run.seed".to_owned(), "0".to_owned(), "7".to_owned())];
    let report = || {
        run_report(&RunView::read(folder.path()), &changed)
            .html()
            .unwrap()
    };
    assert!(report().contains("was stopped before its end"));
    fs::write(
        folder.path().join("summary.json"),
        serde_json::to_string(&summary()).unwrap(),
    )
    .unwrap();
    let page = report();
    let own = |part: &str| {
        !part.starts_with("https://") && !part.starts_with("http://") && !part.starts_with("//")
    };
    for attribute in [
        "<script src=\"",
        "<link href=\"",
        "<img src=\"",
        "@import \"",
    ] {
        assert!(page.split(attribute).skip(1).all(own), "{attribute}");
    }
    for expected in [
        "aria-label=\"Mixture. ",
        "aria-label=\"Gap to the teacher. ",
        "aria-label=\"Loss. ",
        "0.6125",
        "1.125",
        "a &lt;small&gt; run",
        "overlap 1.80",
        "<code>run.seed</code>",
        "<dt>teacher</dt><dd>large</dd>",
        "<dt>student</dt><dd>tiny</dd>",
        "<dt>started</dt><dd>1970-01-01 00:01:40Z</dd>",
        "process 1 on trainer (2 CPUs), ddk 0.1.0",
        "1970-01-01T00:01:40Z",
        "loader-math is restarted",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

#[test]
fn the_markdown_says_the_same_and_names_its_figures() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path());
    fs::write(
        folder.path().join("summary.json"),
        serde_json::to_string(&summary()).unwrap(),
    )
    .unwrap();
    let report = run_report(&RunView::read(folder.path()), &[]);
    let text = report.markdown();
    for chart in report.charts() {
        assert!(text.contains(&format!("](figures/{}.svg)", chart.name)));
        assert!(svg(chart, WIDTH).unwrap().starts_with("<svg "));
    }
    assert_eq!(report.charts().count(), 7);
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let text = text.replace(concat!("ddk ", env!("CARGO_PKG_VERSION")), "ddk VERSION");
    assert_snapshot!(text.replace(name, "RUN"));
}

#[test]
fn the_distance_of_layers_is_drawn_where_there_is_one() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path());
    let drawn = || {
        let report = run_report(&RunView::read(folder.path()), &[]);
        let losses = report.charts().find(|chart| chart.name == "loss");
        svg(losses.unwrap(), WIDTH)
            .unwrap()
            .contains("&quot;layers&quot;")
    };
    assert!(!drawn());
    let file = folder.path().join("run.jsonl");
    let steps = fs::read_to_string(&file).unwrap();
    let with_layers = steps.replace("\"learning_rate\"", "\"layer_loss\":0.25,\"learning_rate\"");
    assert!(with_layers != steps);
    fs::write(&file, with_layers).unwrap();
    assert!(drawn());
}

#[test]
fn what_cannot_be_read_is_said_and_the_rest_is_there() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path());
    let file = folder.path().join("events.jsonl");
    fs::write(&file, fs::read_to_string(&file).unwrap() + "nonsense\n").unwrap();
    let text = run_report(&RunView::read(folder.path()), &[]).markdown();
    assert!(
        text.contains("**Problem:** events.jsonl: a line is not a valid record"),
        "{text}"
    );
    assert!(text.contains("loader-math is restarted"));
}

#[test]
fn what_the_models_write_is_shown_beside_each_other() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path());
    let report = || {
        run_report(&RunView::read(folder.path()), &[])
            .html()
            .unwrap()
    };
    assert!(!report().contains("What the models write"));
    let line = |model: &str, step: u64, text: &str| {
        let texts = serde_json::json!([{"prompt": "Once <b>", "text": text}]);
        format!(
            "{}\n",
            serde_json::json!({"step": step, "model": model, "texts": texts})
        )
    };
    let lines = [
        line("student", 0, " the the the"),
        line("teacher", 0, " upon a time"),
        line("student", 10, " upon `a`\ntime"),
    ];
    fs::write(folder.path().join("texts.jsonl"), lines.concat()).unwrap();
    let page = report();
    for expected in [
        "<h3>Once &lt;b&gt;</h3>",
        "<dt>teacher</dt><dd> upon a time</dd>",
        "<dt>student, step 0</dt><dd> the the the</dd>",
        "<dt>student, step 10</dt><dd> upon 'a' time</dd>",
    ] {
        assert!(page.contains(expected), "{expected}");
    }
}

/// The largest possible report for twelve domains: as many points, intervals and events as a view holds.
#[test]
fn a_long_run_has_a_report_of_less_than_300_kilobytes() {
    let folder = tempfile::tempdir().unwrap();
    write_run(folder.path());
    let repeat = |name: &str, count: u64, change: &dyn Fn(&mut serde_json::Value, u64)| {
        let path = folder.path().join(name);
        let text = fs::read_to_string(&path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let lines = (0..count).map(|index| {
            let mut line = first.clone();
            change(&mut line, index);
            format!("{line}\n")
        });
        fs::write(&path, lines.collect::<String>()).unwrap();
    };
    repeat("run.jsonl", 100_000, &|line, index| {
        line["step"] = (index + 1).into();
        for (key, by) in [
            ("loss", 7),
            ("ce_loss", 11),
            ("kd_loss", 13),
            ("grad_norm", 17),
        ] {
            line[key] = (1.0 + ((index * by) % 1009) as f64 / 1013.0).into();
        }
    });
    repeat("mixture.jsonl", 1000, &|line, index| {
        line["interval"] = index.into();
        line["step"] = (100 * index).into();
        line["evaluated_at_step"] = (100 * index).into();
        for key in [
            "weights",
            "ratio",
            "gap",
            "student_perplexity",
            "teacher_perplexity",
        ] {
            let value = |domain: u64| ((index * domain) % 101 + 1) as f64 / 1212.0;
            let values = (1..=12).map(|domain| (format!("domain-{domain}"), value(domain)));
            line[key] = values.collect::<BTreeMap<_, _>>().into_iter().collect();
        }
    });
    let report = run_report(&RunView::read(folder.path()), &[]);
    let named: Vec<&str> = report.charts().map(|chart| chart.name.as_str()).collect();
    for chart in [
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "perplexity",
    ] {
        assert!(named.contains(&chart), "{chart} is not among {named:?}");
    }
    let page = report.html().unwrap();
    assert!(page.len() < 300_000, "{} bytes", page.len());
}
