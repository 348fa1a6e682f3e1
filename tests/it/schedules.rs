//! Learning-rate schedules, patience, and forks that train on with another schedule.

use std::fs;

use serde_json::Value;

use crate::world::{World, read_lines, stderr, train_with};

/// The peak, the end value and the warmup steps of the world's configuration.
const PEAK: f64 = 5e-3;
const END: f64 = 5e-4;
const WARMUP: u64 = 2;

fn train(world: &World, faults: &[&str], more: &[&str]) -> String {
    let output = train_with(world, faults, more);
    let said = stderr(&output);
    assert_eq!(output.status.success(), faults.is_empty(), "{said}");
    said
}

/// Both runs made the same steps, bit for bit.
fn assert_equal(run: &World, other: &World, what: &str) {
    assert!(run.trajectory() == other.trajectory(), "{what}");
    assert!(run.student_weights() == other.student_weights(), "{what}");
}

fn rates(lines: &[Value]) -> Vec<f64> {
    let rate = |line: &Value| line["learning_rate"].as_f64().unwrap();
    lines.iter().map(rate).collect()
}

/// A line from the peak at `from` to the end value at `to`, after the warmup.
fn straight(step: u64, from: u64, to: u64) -> f64 {
    if step < WARMUP {
        return PEAK * step as f64 / WARMUP as f64;
    }
    let passed = (step.max(from) - from) as f64 / (to - from) as f64;
    PEAK + (END - PEAK) * passed.min(1.0)
}

fn assert_rates(lines: &[Value], first: u64, expected: impl Fn(u64) -> f64, what: &str) {
    for (step, rate) in (first..).zip(rates(lines)) {
        let expected = expected(step);
        assert!(
            (rate - expected).abs() < 1e-12,
            "{what}, step {step}: {rate} instead of {expected}"
        );
    }
}

/// Decays over the last four steps.
const WSD: [&str; 2] = ["lr_scheduler.type=wsd", "lr_scheduler.decay_steps=4"];

#[test]
fn a_run_follows_its_schedule_and_resumes_and_extends_with_it() {
    type Rate = fn(u64) -> f64;
    let cases: [(&[&str], Rate); 4] = [
        (&["lr_scheduler.type=linear"], |step| {
            straight(step, WARMUP, 12)
        }),
        (&["lr_scheduler.type=constant"], |step| {
            straight(step, 1_000, 2_000)
        }),
        (&WSD, |step| straight(step, 8, 12)),
        (
            &["lr_scheduler.type=wsd", "lr_scheduler.decay_fraction=0.5"],
            |step| straight(step, 6, 12),
        ),
    ];
    let mut students = Vec::new();
    for (set, rate) in cases {
        let what = format!("{set:?}");
        let whole = World::new();
        train(&whole, &[], set);
        assert_eq!(whole.lines("run.jsonl").len(), 12);
        assert_rates(&whole.lines("run.jsonl"), 1, rate, &what);
        let killed = World::new();
        train(&killed, &["kill student 10"], set);
        train(&killed, &[], set);
        assert_equal(&killed, &whole, &what);
        // Steps after the schedule's end.
        let longer = [set, &["run.max_steps=15"]].concat();
        train(&killed, &[], &longer);
        assert_rates(&killed.lines("run.jsonl"), 1, rate, &what);
        let reference = World::new();
        train(
            &reference,
            &[],
            &[&longer[..], &["lr_scheduler.total_steps=12"]].concat(),
        );
        assert_equal(&killed, &reference, &what);
        students.push(whole.student_weights());
    }
    students.sort();
    students.dedup();
    assert_eq!(students.len(), 4, "each schedule trains another student");
}

#[test]
fn settings_of_a_decay_without_one_are_refused() {
    let world = World::new();
    for (sets, key) in [
        (&["lr_scheduler.decay_steps=3"][..], "decay_steps"),
        (
            &["lr_scheduler.type=linear", "lr_scheduler.decay_type=cosine"],
            "decay_type",
        ),
        (
            &[WSD[0], WSD[1], "lr_scheduler.decay_fraction=0.3"],
            "are both set",
        ),
        (&["run.min_improvement=0.1"], "without `run.patience`"),
        (
            &["run.patience=2", "mixture.policy=equal"],
            "set `evaluation.interval`",
        ),
    ] {
        let output = train_with(&world, &[], sets);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(key), "{}", stderr(&output));
    }
    // A schedule is fixed once the run has started.
    train(&world, &[], &[]);
    let said = world.fail(
        2,
        &["train", "config.toml", "--set", "lr_scheduler.type=linear"],
    );
    assert!(
        said.contains("`lr_scheduler.type` was \"cosine\" and is now \"linear\"")
            && said.contains("--fork NAME --set run.max_steps=24"),
        "{said}"
    );
}

/// The usual way to train on after `wsd`: from the checkpoint before the decay.
#[test]
fn a_fork_has_its_own_schedule_and_says_so() {
    let world = World::new();
    train(
        &world,
        &[],
        &[
            WSD[0],
            WSD[1],
            "checkpoint.keep_latest=9",
            "run.max_steps=12",
        ],
    );
    let fork = |name: &str, from: &str, more: &[&str]| {
        let sets = [&WSD[..], more].concat();
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let start = [
            "train",
            "config.toml",
            "--fork",
            name,
            "--resume-from",
            from,
        ];
        start
            .into_iter()
            .chain(sets)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |arguments: &[String]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        world.run(&arguments)
    };
    let forked = run(&fork("longer", "6", &["run.max_steps=20"]));
    let said = stderr(&forked);
    assert!(forked.status.success(), "{said}");
    assert!(
        said.contains("the learning rate is 5.00e-3 at step 7, and was 5.00e-3 at step 6"),
        "{said}"
    );
    let lines = read_lines(&world.path().join("runs/longer/run.jsonl"));
    assert_eq!(lines.len(), 14);
    assert_rates(&lines, 7, |step| straight(step, 16, 20), "the fork");
    let forked = run(&fork("later", "12", &["run.max_steps=20"]));
    let said = stderr(&forked);
    assert!(
        said.contains("the learning rate is 5.00e-3 at step 13, and was 5.00e-4 at step 12"),
        "{said}"
    );
    // Without more steps, there is nothing to do, and no folder is made.
    for (name, from, more) in [
        ("none", "12", &["run.max_steps=12"][..]),
        ("none", "9", &["run.max_steps=9"]),
        ("none", "12", &["run.max_steps=20", "run.max_intervals=3"]),
        ("none", "9", &["run.max_steps=20", "run.max_tokens=2000"]),
    ] {
        let refused = run(&fork(name, from, more));
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(
            said.contains("would make no step") && said.contains("pass a larger limit"),
            "{said}"
        );
        assert!(!world.path().join("runs/none").exists());
    }
    // A step that has no checkpoint is not advised.
    let said = world.fail(
        2,
        &[
            "train",
            "config.toml",
            "--set",
            WSD[0],
            "--set",
            WSD[1],
            "--resume-from",
            "7",
        ],
    );
    assert!(
        said.contains("no checkpoint of step 7") && said.contains("3, 6, 9, 12"),
        "{said}"
    );
}

fn summary(world: &World) -> Value {
    let text = fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A learning rate that rises until it ruins the student: from some evaluation on, the mean gap grows.
#[test]
fn patience_ends_a_run_and_more_of_it_extends_the_run() {
    const SET: [&str; 4] = [
        "lr_scheduler.min_lr=0.5",
        "run.max_steps=40",
        "checkpoint.keep_best=true",
        "lr_scheduler.total_steps=12",
    ];
    let set = |more: &[&'static str]| [&SET[..], more].concat();
    let whole = World::new();
    train(&whole, &[], &set(&[]));
    let mut gaps = Vec::new();
    let lines = whole.lines("mixture.jsonl");
    // Other lines say what an interval drew.
    for line in lines.iter().filter(|line| line["gap"].is_object()) {
        let of_domains: Vec<f64> = line["gap"]
            .as_object()
            .unwrap()
            .values()
            .map(|gap| gap.as_f64().unwrap())
            .collect();
        // A gap that is not finite is left out of the line.
        let mean = match of_domains.len() {
            3 => of_domains.iter().sum::<f64>() / 3.0,
            _ => f64::INFINITY,
        };
        gaps.push((line["evaluated_at_step"].as_u64().unwrap(), mean));
    }
    gaps.retain(|(step, _)| *step > 0);
    assert!(gaps.len() > 6, "{gaps:?}");
    let expected = |patience: u64| {
        let (mut best, mut since) = (f64::INFINITY, 0);
        for (step, gap) in &gaps {
            since = if *gap < best { 0 } else { since + 1 };
            best = best.min(*gap);
            if since == patience {
                return *step;
            }
        }
        panic!("no end within the run: {gaps:?}");
    };
    let patient = World::new();
    train(&patient, &[], &set(&["run.patience=2"]));
    assert_eq!(summary(&patient)["stop_reason"], "patience");
    assert_eq!(summary(&patient)["steps"], expected(2), "{gaps:?}");
    let killed = World::new();
    let before = format!("kill student {}", expected(2) - 1);
    train(&killed, &[&before], &set(&["run.patience=2"]));
    train(&killed, &[], &set(&["run.patience=2"]));
    assert_equal(&killed, &patient, "killed before its patience ends");
    assert_eq!(summary(&killed)["stop_reason"], "patience");
    // More patience extends the finished run.
    train(&killed, &[], &set(&["run.patience=3"]));
    let longer = World::new();
    train(&longer, &[], &set(&["run.patience=3"]));
    assert_eq!(summary(&longer)["steps"], expected(3), "{gaps:?}");
    assert!(expected(3) > expected(2));
    assert_equal(&killed, &longer, "extended by more patience");
}
