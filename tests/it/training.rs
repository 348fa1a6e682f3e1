//! Checks a whole run, and that settings for speed never change its results.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::world::{STEPS, World};

#[test]
fn a_run_leaves_what_the_design_names_and_its_student_is_the_one_it_reports() {
    let world = World::new();
    let output = world.succeed(&["train", "config.toml", "--json"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let summary: Value =
        serde_json::from_str(&fs::read_to_string(world.run_folder().join("summary.json")).unwrap())
            .unwrap();
    assert_eq!(printed, summary);
    assert_eq!(summary["steps"], STEPS);
    assert_eq!(summary["stop_reason"], "max_steps");
    for file in [
        "config.toml",
        "run.jsonl",
        "mixture.jsonl",
        "samples.jsonl",
        "events.jsonl",
        "run.log",
        "report.html",
        "student/config.json",
        "student/model.safetensors",
        "student/tokenizer.json",
    ] {
        assert!(world.run_folder().join(file).exists(), "{file} is missing");
    }

    // The loss is CE + gamma KL, and step numbers are consecutive.
    let steps = world.lines("run.jsonl");
    for (index, line) in steps.iter().enumerate() {
        assert_eq!(line["step"], index as u64 + 1);
        let [loss, ce, kl, gamma] =
            ["loss", "ce_loss", "kd_loss", "gamma"].map(|key| line[key].as_f64().unwrap());
        assert!((loss - (ce + gamma * kl)).abs() < 1e-9 && kl > 0.0);
    }

    // Evaluating the exported folder gives the perplexities that the run reported.
    let output = world.succeed(&[
        "eval",
        "config.toml",
        "--model",
        "runs/small/student",
        "--json",
    ]);
    let evaluated: Value = serde_json::from_slice(&output.stdout).unwrap();
    for (domain, values) in summary["domains"].as_object().unwrap() {
        let reported = values["student_perplexity_after"].as_f64().unwrap();
        let again = evaluated["domains"][domain]["perplexity"].as_f64().unwrap();
        assert!(
            (reported / again - 1.0).abs() < 1e-6,
            "{domain}: {reported} and {again}"
        );
        assert!(reported < values["student_perplexity_before"].as_f64().unwrap());
    }

    // A finished run that is started again says so and changes nothing.
    let before = world.trajectory();
    world.succeed(&["train", "config.toml"]);
    assert_eq!(world.trajectory(), before);
}

#[test]
fn every_row_is_drawn_by_the_mixture_of_its_step_and_the_counts_add_up() {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    let samples = world.lines("samples.jsonl");
    assert_eq!(samples.len() as u64, STEPS * 8);
    let mut counted: BTreeMap<(u64, String), u64> = BTreeMap::new();
    for sample in &samples {
        let interval = (sample["step"].as_u64().unwrap() - 1) / 4;
        assert_eq!(sample["interval"], interval);
        *counted
            .entry((interval, sample["domain"].as_str().unwrap().to_owned()))
            .or_default() += 1;
    }
    for line in world.lines("mixture.jsonl") {
        let Some(drawn) = line["drawn"].as_object() else {
            continue;
        };
        let interval = line["interval"].as_u64().unwrap();
        for (domain, values) in drawn {
            let seen = counted
                .get(&(interval, domain.clone()))
                .copied()
                .unwrap_or(0);
            assert_eq!(values["sequences"], seen, "interval {interval}, {domain}");
        }
    }
}

#[test]
fn queue_depths_and_teacher_lanes_change_nothing_but_speed() {
    let mut reference = None;
    for setting in [
        &["--set", "pipeline.queue_depth=0"][..],
        &["--set", "pipeline.queue_depth=2"],
        &["--set", "pipeline.queue_depth=8"],
        &[
            "--set",
            "pipeline.queue_depth=1",
            "--set",
            "teacher.devices=[\"cpu\",\"cpu\"]",
        ],
    ] {
        let world = World::new();
        world.succeed(&[&["train", "config.toml"], setting].concat());
        let result = (world.trajectory(), world.student_weights());
        match &reference {
            None => reference = Some(result),
            Some(reference) => assert!(*reference == result, "{setting:?} changed the run"),
        }
    }
}

#[test]
fn another_seed_is_another_run() {
    let (one, two) = (World::new(), World::new());
    one.succeed(&["train", "config.toml"]);
    two.succeed(&["train", "config.toml", "--set", "run.seed=1"]);
    assert_ne!(one.lines("samples.jsonl"), two.lines("samples.jsonl"));
}

#[test]
fn a_run_stops_at_its_token_budget_or_when_the_student_has_caught_up() {
    let world = World::new();
    // A step has at most 8 sequences of 32 tokens; the fifth step reaches the budget.
    world.succeed(&["train", "config.toml", "--set", "run.max_tokens=1100"]);
    let summary = fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(
        (&summary["stop_reason"], &summary["steps"]),
        (&"max_tokens".into(), &5.into())
    );

    let world = World::new();
    world.succeed(&["train", "config.toml", "--set", "run.target_gap=1000"]);
    let summary = fs::read_to_string(world.run_folder().join("summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["stop_reason"], "target_gap");
    assert_eq!(summary["steps"], 4);
}
