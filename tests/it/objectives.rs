//! Objectives: the student trains with each one and resumes after a kill as if nothing had happened.

use std::{fs, path::Path};

use serde_json::Value;

use crate::world::{STEPS, World, read_lines, stderr};

/// Trains with these settings. If `kill` is set, the process must die from that fault.
fn train(world: &World, sets: &[&str], kill: Option<&str>) {
    let plan = kill.map(|fault| format!("fault_injection.plan=[\"{fault}\"]"));
    let mut arguments = vec!["train", "config.toml"];
    for set in sets.iter().copied().chain(plan.as_deref()) {
        arguments.extend(["--set", set]);
    }
    let mut command = world.command(&arguments);
    let output = command.env("DDK_ALLOW_FAULTS", "1").output().unwrap();
    assert_eq!(
        output.status.success(),
        kill.is_none(),
        "{sets:?}: {}",
        stderr(&output)
    );
}

fn number(line: &Value, key: &str) -> f64 {
    line[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} is missing in {line}"))
}

#[test]
fn every_objective_trains_and_goes_on_after_a_kill() {
    let mut first = Vec::new();
    for name in [
        "ce",
        "reverse_kl",
        "jsd",
        "skew_kl",
        "skew_reverse_kl",
        "tvd",
    ] {
        let set = format!("objective.name={name}");
        let (whole, killed) = (World::new(), World::new());
        train(&whole, &[&set], None);
        train(&killed, &[&set], Some("kill student 8"));
        train(&killed, &[&set], None);
        assert!(whole.trajectory() == killed.trajectory(), "{name}");
        assert!(
            whole.student_weights() == killed.student_weights(),
            "{name}"
        );

        let steps = whole.lines("run.jsonl");
        assert_eq!(steps.len() as u64, STEPS);
        for line in &steps {
            let [loss, ce, kl, gamma] =
                ["loss", "ce_loss", "kd_loss", "gamma"].map(|key| number(line, key));
            assert!((loss - (ce + gamma * kl)).abs() < 1e-9, "{name}");
            match name {
                "ce" => assert_eq!((kl, gamma), (0.0, 0.0)),
                _ => assert!(kl > 0.0 && gamma == 0.2, "{name}"),
            }
        }
        let mean = |lines: &[Value]| {
            lines
                .iter()
                .map(|line| number(line, "ce_loss"))
                .sum::<f64>()
        };
        assert!(mean(&steps[9..]) < mean(&steps[..3]), "{name}");
        // The first step's cross-entropy does not depend on the objective; its divergence does.
        first.push((number(&steps[0], "ce_loss"), number(&steps[0], "kd_loss")));
    }
    for (index, (ce, kl)) in first.iter().enumerate() {
        assert_eq!(*ce, first[0].0);
        assert!(first[..index].iter().all(|(_, other)| other != kl));
    }
}

fn tensors(file: &Path) -> Vec<String> {
    let mut names = ddk_model::safetensors::read_tensors(file).unwrap().names();
    names.sort();
    names
}

#[test]
fn ted_trains_in_two_stages_and_each_goes_on_after_a_kill() {
    let sets = [
        "objective.name=ted",
        "objective.ted_steps=9",
        "objective.ted_lr=2e-2",
        "student.activation_checkpointing=true",
    ];
    let (whole, killed) = (World::new(), World::new());
    let models = |world: &World| {
        ["teacher", "student"].map(|model| {
            let file = format!("models/{model}/model.safetensors");
            fs::read(world.path().join(file)).unwrap()
        })
    };
    let before = models(&whole);
    train(&whole, &sets, None);
    assert!(before == models(&whole));
    // The first stage is the first to reach step 8; only the second stage reaches step 11.
    train(&killed, &sets, Some("kill student 8"));
    let stage = |world: &World| world.run_folder().join("phases/filters");
    assert!(!stage(&killed).join("filters.safetensors").exists());
    train(&killed, &sets, Some("kill student 11"));
    assert!(stage(&killed).join("filters.safetensors").exists());
    train(&killed, &sets, None);

    let of_stage = |world: &World| {
        (
            read_lines(&stage(world).join("run.jsonl")),
            read_lines(&stage(world).join("samples.jsonl")),
            fs::read(stage(world).join("filters.safetensors")).unwrap(),
        )
    };
    assert!(of_stage(&whole) == of_stage(&killed));
    assert!(whole.trajectory() == killed.trajectory());
    assert!(whole.student_weights() == killed.student_weights());
    for file in ["weights.safetensors", "moments.safetensors"] {
        let of = |world: &World| {
            let folder = format!("checkpoints/step-{STEPS:08}");
            fs::read(world.run_folder().join(folder).join(file)).unwrap()
        };
        assert!(of(&whole) == of(&killed), "{file}");
    }

    // The first stage lowers its task loss. Its checkpoints hold filters and no model.
    let (steps, _, _) = of_stage(&whole);
    assert_eq!(steps.len(), 9);
    assert!(number(&steps[8], "ce_loss") < number(&steps[0], "ce_loss"));
    assert!(steps.iter().all(|line| line["loss"] == line["ce_loss"]));
    let filters = ["filters.student.1-2", "filters.teacher.1-2"];
    let checkpoint = stage(&whole).join("checkpoints/step-00000009/weights.safetensors");
    assert_eq!(tensors(&checkpoint), filters);

    // In the second stage, the loss is the sum of its terms. The checkpoint holds the student's filters; the export
    // holds none.
    for line in whole.lines("run.jsonl") {
        let [loss, ce, kl, gamma, layer, weight] = [
            "loss",
            "ce_loss",
            "kd_loss",
            "gamma",
            "layer_loss",
            "layer_weight",
        ]
        .map(|key| number(&line, key));
        assert!((loss - (ce + gamma * kl + weight * layer)).abs() < 1e-9);
        assert!(kl > 0.0 && layer > 0.0 && weight == 1.0);
    }
    let run = whole.run_folder();
    let checkpoint = run.join(format!("checkpoints/step-{STEPS:08}/weights.safetensors"));
    assert!(tensors(&checkpoint).contains(&filters[0].to_owned()));
    assert!(!tensors(&checkpoint).contains(&filters[1].to_owned()));
    assert_eq!(
        tensors(&run.join("student/model.safetensors")),
        tensors(&whole.path().join("models/student/model.safetensors"))
    );
    let log = fs::read_to_string(run.join("run.log")).unwrap();
    // Two batches in the queue, each with 4 sequences of 32 tokens: ids, and hidden states of two layers of width 32.
    assert!(
        log.contains(&format!("bytes={}", 2 * 4 * 32 * (8 + 4 * 32 * 2))),
        "{log}"
    );
}

#[test]
fn layers_that_the_models_have_not_are_named() {
    let world = World::new();
    let said = world.fail(
        2,
        &[
            "train",
            "config.toml",
            "--set",
            "objective.name=ted",
            "--set",
            "objective.ted_layers=[[1, 2], [2, 2]]",
        ],
    );
    assert!(
        said.contains("[2, 2]") && said.contains("the student has layers 1 to 1"),
        "{said}"
    );
}
