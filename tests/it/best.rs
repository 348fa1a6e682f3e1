//! DDK keeps, marks, and exports the best student, whether or not evaluations and checkpoints coincide.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::world::{World, stderr, train_with};

/// Checkpoints at steps 5, 10 and 12; evaluations at 4, 8 and 12.
const APART: [&str; 2] = ["checkpoint.interval=5", "checkpoint.keep_latest=1"];

/// Final learning rates: with the first, the student improves to the end; the second ruins it.
const RATES: [&str; 2] = ["lr_scheduler.min_lr=5e-4", "lr_scheduler.min_lr=0.5"];

fn train(world: &World, more: &[&str]) {
    let output = train_with(world, &[], more);
    assert!(output.status.success(), "{}", stderr(&output));
}

fn checkpoints(world: &World) -> Vec<u64> {
    let entries = fs::read_dir(world.run_folder().join("checkpoints")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> = names
        .map(|name| name.strip_prefix("step-").unwrap().parse().unwrap())
        .collect();
    steps.sort_unstable();
    steps
}

fn weights_of_step(world: &World, step: &str) -> Vec<u8> {
    let to = format!("exported-{step}");
    world.succeed(&["export", "runs/small", "--step", step, "--out", &to]);
    fs::read(world.path().join(to).join("model.safetensors")).unwrap()
}

/// Mean gaps after steps 4, 8 and 12, from `ddk eval` on exports of a run that keeps every checkpoint.
fn gaps(world: &World, more: &[&str]) -> BTreeMap<u64, f64> {
    train(
        world,
        &[
            more,
            &["checkpoint.interval=1", "checkpoint.keep_latest=99"],
        ]
        .concat(),
    );
    let mean_gap = |step: u64| {
        weights_of_step(world, &step.to_string());
        let exported = format!("exported-{step}");
        let eval = [
            "eval",
            "config.toml",
            "--model",
            &exported,
            "--baseline",
            "models/teacher",
            "--json",
        ];
        let measured: Value = serde_json::from_slice(&world.succeed(&eval).stdout).unwrap();
        let domains = measured["domains"].as_object().unwrap();
        let gap = |of: &Value| {
            (of["perplexity"].as_f64().unwrap() / of["baseline"].as_f64().unwrap()).ln()
        };
        domains.values().map(gap).sum::<f64>() / domains.len() as f64
    };
    [4, 8, 12].map(|step| (step, mean_gap(step))).into()
}

fn best_of(gaps: &BTreeMap<u64, f64>, steps: &[u64]) -> u64 {
    let smaller = |a: &&u64, b: &&u64| gaps[a].total_cmp(&gaps[b]);
    *steps.iter().min_by(smaller).unwrap()
}

#[test]
fn the_best_is_kept_and_exported_wherever_evaluations_fall() {
    let mut exported = Vec::new();
    for (lag, rate) in [
        ("mixture.lag=0", RATES[0]),
        ("mixture.lag=0", RATES[1]),
        ("mixture.lag=1", RATES[0]),
        ("mixture.lag=1", RATES[1]),
    ] {
        let what = format!("{lag}, {rate}");
        let all = World::new();
        let gaps = gaps(&all, &[lag, rate]);
        let (of_intervals, of_all) = (best_of(&gaps, &[4, 8]), best_of(&gaps, &[4, 8, 12]));

        let kept = World::new();
        train(
            &kept,
            &[&APART[..], &[lag, rate, "checkpoint.keep_best=true"]].concat(),
        );
        assert_eq!(checkpoints(&kept), [of_intervals, 12], "{what}");
        // Saving checkpoints does not change the run.
        assert!(kept.trajectory() == all.trajectory(), "{what}");
        assert!(
            kept.student_weights() == weights_of_step(&all, "12"),
            "{what}"
        );
        let listed =
            String::from_utf8(kept.succeed(&["checkpoints", "runs/small"]).stdout).unwrap();
        let marked: Vec<&str> = listed
            .lines()
            .filter(|line| line.contains("best"))
            .collect();
        assert_eq!(marked.len(), 1, "{listed}");
        assert!(
            marked[0].trim_start().starts_with(&format!("{of_all} ")),
            "{what}: {listed}"
        );
        assert!(
            marked[0].contains(&format!(" {:.3} ", gaps[&of_all])),
            "{what}: {listed}"
        );
        let best = weights_of_step(&all, &of_all.to_string());
        assert!(weights_of_step(&kept, "best") == best, "{what}");

        // A run that is killed and resumed finds the same best student.
        for kill in ["kill student 7", "kill evaluation 2", "kill save 12 3"] {
            let world = World::new();
            let set = [&APART[..], &[lag, rate, "run.export=best"]].concat();
            let killed = train_with(&world, &[kill], &set);
            // With a lag, the student itself evaluates only at the start and at the end.
            assert!(!killed.status.success(), "{what}, {kill}");
            train(&world, &set);
            assert_eq!(checkpoints(&world), [of_intervals, 12], "{what}, {kill}");
            assert!(world.student_weights() == best, "{what}, {kill}");
            let summary = fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
            let summary: Value = serde_json::from_str(&summary).unwrap();
            assert_eq!(summary["exported_step"], of_all, "{what}, {kill}");
            let text = summary["exported"].as_str().unwrap();
            assert!(
                text.starts_with(&format!("best (step {of_all}, ")),
                "{text}"
            );
        }
        exported.push(of_all);
    }
    assert!(
        exported.contains(&12) && exported.iter().any(|step| *step < 12),
        "{exported:?}"
    );
}

#[test]
fn the_last_student_is_exported_unless_the_best_is_asked_for() {
    let world = World::new();
    train(&world, &[RATES[1]]);
    let summary = fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["exported_step"], 12);
    assert_eq!(summary["exported"], "last, in runs/small/student");
    assert!(world.student_weights() == weights_of_step(&world, "12"));
    let said = world.fail(
        2,
        &["export", "runs/small", "--step", "bestest", "--out", "x"],
    );
    assert!(said.contains("expected a step, or `best`"), "{said}");
    // This run evaluates nothing between its start and its end.
    let refused = [
        "train",
        "config.toml",
        "--set",
        "mixture.policy=equal",
        "--set",
        "run.export=best",
    ];
    let said = world.fail(2, &refused);
    assert!(
        said.contains("`run.export`") && said.contains("evaluation.interval"),
        "{said}"
    );
}
