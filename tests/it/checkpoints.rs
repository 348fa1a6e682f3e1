//! Choosing checkpoints: which ones to keep, which one to resume from, and which one to fork.

use std::{fs, path::Path};

use serde_json::Value;

use crate::world::{STEPS, World, assert_same, is_step, read_lines, stderr, train_with, whole};

#[test]
fn a_run_goes_on_from_a_checkpoint_of_choice() {
    let whole = whole();
    let world = World::new();
    world.succeed(&["train", "config.toml", "--set", "checkpoint.keep_latest=9"]);
    fs::remove_file(world.run_folder().join("summary.json")).unwrap();
    let said = world.fail(2, &["train", "config.toml", "--resume-from", "5"]);
    assert!(
        said.contains("no checkpoint of step 5") && said.contains("3, 6, 9, 12"),
        "{said}"
    );
    let output = world.succeed(&["train", "config.toml", "--resume-from", "6"]);
    let said = stderr(&output);
    assert!(said.contains("resuming from step 6 "), "{said}");
    // The first evaluation of this process is compared with that of an earlier one.
    let mut lines = said.lines();
    let evaluation = lines.find(|line| line.starts_with("evaluation after step 8: mean gap "));
    let evaluation = evaluation.unwrap_or_else(|| panic!("no evaluation in: {said}"));
    let mixtures = world.lines("mixture.jsonl");
    let gap_at = |step: u64| {
        let line = mixtures
            .iter()
            .find(|line| line["evaluated_at_step"].as_u64() == Some(step));
        let gaps = line.unwrap()["gap"].as_object().unwrap().values();
        let gaps: Vec<f64> = gaps.map(|gap| gap.as_f64().unwrap()).collect();
        gaps.iter().sum::<f64>() / gaps.len() as f64
    };
    let [start, before, now] = [0, 4, 8].map(gap_at);
    let expected = format!("mean gap {before:.3} → {now:.3} (start {start:.3})");
    assert!(
        evaluation.contains(&expected),
        "{expected} is not in {evaluation}"
    );
    assert!(
        world
            .run_folder()
            .join("checkpoints/aside-step-00000009")
            .exists()
    );
    assert_same(&world, &whole, "from step 6");
}

#[test]
fn checkpoints_that_are_to_stay_for_ever_stay() {
    let world = World::new();
    let set = [
        "checkpoint.interval=2",
        "checkpoint.keep_latest=1",
        "checkpoint.keep_every=4",
        "checkpoint.keep_best=true",
    ];
    assert!(train_with(&world, &[], &set).status.success());
    let listed = String::from_utf8(world.succeed(&["checkpoints", "runs/small"]).stdout).unwrap();
    let steps: Vec<u64> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.parse().ok())
        .collect();
    assert_eq!(steps, [4, 8, 12], "{listed}");
    let set = [
        "checkpoint.interval=2",
        "checkpoint.keep_latest=1",
        "checkpoint.keep_best=true",
        "run.name=best",
    ];
    assert!(train_with(&world, &[], &set).status.success());
    let listed = String::from_utf8(world.succeed(&["checkpoints", "runs/best"]).stdout).unwrap();
    // The student keeps improving, so the best measured checkpoint is the one at the start of the last interval.
    assert!(
        listed.contains("\n   8  ") && listed.contains("\n  12  "),
        "{listed}"
    );
}

/// A damaged checkpoint of a later step neither blocks the run nor takes a sound checkpoint's place.
#[test]
fn a_damaged_checkpoint_is_set_aside_and_counts_no_more() {
    let world = World::new();
    let keep = [
        "train",
        "config.toml",
        "--set",
        "checkpoint.keep_latest=1",
        "--set",
        "checkpoint.keep_every=6",
    ];
    world.succeed(&keep);
    let checkpoints = world.run_folder().join("checkpoints");
    fs::remove_file(world.run_folder().join("summary.json")).unwrap();
    fs::write(checkpoints.join("step-00000012/state.json"), "{}").unwrap();
    let said = stderr(&world.succeed(&["export", "runs/small", "--out", "exported"]));
    assert!(
        said.contains("step-00000012 is damaged and skipped") && said.contains("student of step 6"),
        "{said}"
    );
    let started = world.start_until(&keep, |line| is_step(line, 9));
    started.signal("KILL");
    started.wait();
    assert!(checkpoints.join("aside-step-00000012").exists());
    let events = world.lines("events.jsonl");
    assert!(events.iter().any(|event| event["kind"] == "set_aside"));
    let output = world.succeed(&keep);
    let said = stderr(&output);
    assert!(!said.contains("damaged"), "{said}");
    // DDK never overwrites a checkpoint that it set aside.
    fs::remove_file(world.run_folder().join("summary.json")).unwrap();
    world.succeed(&[&keep[..], &["--resume-from", "6"]].concat());
    assert!(checkpoints.join("aside-step-00000012-2").exists());
    assert_same(&world, &whole(), "after a damaged checkpoint");
}

#[test]
fn where_a_run_goes_on_from_is_never_left_unsaid() {
    let world = World::new();
    world.succeed(&["train", "config.toml", "--set", "checkpoint.keep_latest=9"]);
    let said = world.fail(2, &["train", "config.toml", "--resume-from", "6"]);
    assert!(
        said.contains("is finished: it cannot resume from step 6") && said.contains("--fork"),
        "{said}"
    );
    let none = [
        "train",
        "config.toml",
        "--set",
        "run.name=none",
        "--resume-from",
        "6",
    ];
    assert!(
        world
            .fail(2, &none)
            .contains("there is no run in runs/none")
    );
    assert!(!world.path().join("runs/none").exists());
    let said = world.fail(2, &["train", "config.toml", "--fork", "../elsewhere"]);
    assert!(said.contains("`run.name` is \"../elsewhere\""), "{said}");
    // If the end of a run was interrupted, the next start completes it.
    let report = world.run_folder().join("report.html");
    fs::remove_file(&report).unwrap();
    world.succeed(&["train", "config.toml"]);
    assert!(report.exists());
    // Repeating the command resumes the fork.
    let fork = [
        "train",
        "config.toml",
        "--fork",
        "other",
        "--resume-from",
        "6",
    ];
    let plan = "fault_injection.plan=[\"kill save 12 1\"]";
    let mut killed = world.command(&[&fork[..], &["--set", plan]].concat());
    let output = killed.env("DDK_ALLOW_FAULTS", "1").output().unwrap();
    assert!(!output.status.success(), "{}", stderr(&output));
    let said = stderr(&world.succeed(&fork));
    assert!(said.contains("resuming from step 9 "), "{said}");
}

#[test]
fn a_run_is_forked_with_its_domains_or_others() {
    let whole = whole();
    let world = World::new();
    world.succeed(&["train", "config.toml", "--set", "checkpoint.keep_latest=9"]);
    let lines =
        |name: &str, file: &str| read_lines(&world.path().join("runs").join(name).join(file));

    // With the same domains, the fork makes the same steps as the original run.
    let fork = [
        "train",
        "config.toml",
        "--fork",
        "same",
        "--resume-from",
        "6",
    ];
    let output = world.succeed(&fork);
    assert!(
        stderr(&output).contains("forked from step 6")
            && stderr(&output).contains("starting at step 7 of the run in runs/")
            && !stderr(&output).contains("resuming"),
        "{}",
        stderr(&output)
    );
    let expected = whole.lines("run.jsonl");
    assert!(lines("same", "run.jsonl") == expected[6..]);
    let weights = fs::read(world.path().join("runs/same/student/model.safetensors")).unwrap();
    assert!(weights == whole.student_weights());
    // The table and the page agree on where the fork started: at its own first evaluation.
    let summary = |world: &World, name: &str| -> Value {
        let path = world.path().join("runs").join(name).join("summary.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    };
    let (of_whole, of_fork) = (summary(&whole, "small"), summary(&world, "same"));
    let all = lines("same", "mixture.jsonl");
    let mut mixtures = all.iter().filter(|line| line["weights"].is_object());
    let first = mixtures.next().unwrap();
    assert_eq!(first["evaluated_at_step"], 8);
    for domain in ["coins", "rivers", "storms"] {
        let before =
            |summary: &Value| summary["domains"][domain]["student_perplexity_before"].clone();
        assert_eq!(before(&of_fork), first["student_perplexity"][domain]);
        assert_ne!(before(&of_fork), before(&of_whole));
        let after =
            |summary: &Value| summary["domains"][domain]["student_perplexity_after"].clone();
        assert_eq!(after(&of_fork), after(&of_whole));
    }

    // One domain removed and one added: the fork computes a new mixture at once from the remaining domains.
    let records: String = (0..80)
        .map(|number| {
            format!("{{\"text\":\"field {number}: the gravel hides a purse and hail\"}}\n")
        })
        .collect();
    fs::write(world.path().join("sources/fields.jsonl"), records).unwrap();
    let config = fs::read_to_string(world.path().join("config.toml")).unwrap();
    let config = config.replace(
        "[domains.coins]\nfiles = [\"sources/coins.jsonl\"]",
        "[domains.fields]\nfiles = [\"sources/fields.jsonl\"]",
    );
    let config = config.replace("coins = 0.8, ", "");
    fs::write(world.path().join("other.toml"), config).unwrap();
    let output = world.succeed(&[
        "train",
        "other.toml",
        "--fork",
        "other",
        "--resume-from",
        "6",
    ]);
    assert!(
        stderr(&output).contains("2 of 3 domains kept, 1 new"),
        "{}",
        stderr(&output)
    );
    let steps = lines("other", "run.jsonl");
    assert_eq!(steps[0]["step"], 7);
    assert_eq!(steps.len() as u64, STEPS - 6);
    let mixtures = lines("other", "mixture.jsonl");
    let weights = mixtures[0]["weights"].as_object().unwrap();
    assert_eq!(
        weights.keys().collect::<Vec<_>>(),
        ["fields", "rivers", "storms"]
    );
    assert_eq!(mixtures[0]["step"], 6);
    // A remaining domain continues at the sequence where it stopped.
    let (old, new) = (
        world.lines("samples.jsonl"),
        lines("other", "samples.jsonl"),
    );
    let rows = |samples: &[Value], domain: &str, first: u64, last: u64| -> Vec<String> {
        let wanted = |sample: &&Value| {
            let step = sample["step"].as_u64().unwrap();
            sample["domain"] == domain && (first..=last).contains(&step)
        };
        let place = |sample: &Value| format!("{} {}", sample["epoch"], sample["sequence"]);
        samples.iter().filter(wanted).map(place).collect()
    };
    let seen = rows(&old, "storms", 1, 6);
    let next = rows(&new, "storms", 7, STEPS);
    let all: Vec<String> = rows(&old, "storms", 1, STEPS);
    let common = all.len().min(seen.len() + next.len());
    assert!([seen, next].concat()[..common] == all[..common]);

    let said = world.fail(
        2,
        &[
            "train",
            "config.toml",
            "--fork",
            "x",
            "--set",
            "teacher.model=models/student",
            "--set",
            "student.model=models/teacher",
        ],
    );
    assert!(said.contains("fork keeps weights"), "{said}");
}

/// The fork starts inside an interval of four steps. Settings that change drawing or evaluation start a new mixture
/// there.
#[test]
fn a_fork_that_draws_or_measures_otherwise_ends_the_interval() {
    let world = World::new();
    world.succeed(&["train", "config.toml", "--set", "checkpoint.keep_latest=9"]);
    let others = [
        ("more-rows", "training.global_batch_size=16"),
        ("fewer-rows", "training.global_batch_size=4"),
        ("shorter", "corpus.sequence_length=24"),
        ("packed", "corpus.packing=concat_masked"),
        ("seed", "run.seed=9"),
        ("bf16", "teacher.dtype=bf16"),
    ];
    for (name, set) in others {
        let fork = ["train", "config.toml", "--fork", name, "--resume-from", "6"];
        world.succeed(&[&fork[..], &["--set", set]].concat());
        let lines = |file: &str| read_lines(&world.path().join("runs").join(name).join(file));
        let steps: Vec<u64> = lines("run.jsonl")
            .iter()
            .map(|line| line["step"].as_u64().unwrap())
            .collect();
        let whole: Vec<u64> = (7..=STEPS).collect();
        assert_eq!(steps, whole, "{set}");
        assert_eq!(lines("mixture.jsonl")[0]["step"], 6, "{set}");
    }
}

/// DDK caches the teacher's perplexities next to the corpus and reuses them only if the settings give the same values.
#[test]
fn kept_perplexities_are_those_of_the_same_settings() {
    let (world, alone) = (World::new(), World::new());
    let bf16 = ["train", "config.toml", "--set", "teacher.dtype=bf16"];
    world.succeed(&["train", "config.toml", "--set", "run.name=before"]);
    world.succeed(&bf16);
    alone.succeed(&bf16);
    assert_same(&world, &alone, "after a run with another dtype");
}

/// A run that lost its checkpoints, in whatever way, does not start over on its own. DDK truncates none of its files.
#[test]
fn a_run_that_lost_its_checkpoints_says_so_and_starts_over_only_when_told() {
    let whole = whole();
    type Loss = fn(&Path);
    let losses: [(&str, Loss); 4] = [
        ("holds none", |checkpoints| {
            fs::remove_dir_all(checkpoints).unwrap()
        }),
        ("holds none", |checkpoints| {
            fs::remove_dir_all(checkpoints).unwrap();
            fs::create_dir(checkpoints).unwrap();
        }),
        ("holds none", |checkpoints| {
            for step in [6, 9, 12] {
                let aside = checkpoints.join(format!("aside-step-{step:08}"));
                fs::rename(checkpoints.join(format!("step-{step:08}")), aside).unwrap();
            }
        }),
        ("step-00000012: state.json", |checkpoints| {
            for step in [6, 9, 12] {
                let state = checkpoints.join(format!("step-{step:08}/state.json"));
                fs::write(state, "{}").unwrap();
            }
        }),
    ];
    for (named, lose) in losses {
        let world = World::new();
        world.succeed(&["train", "config.toml"]);
        let folder = world.run_folder();
        fs::remove_file(folder.join("summary.json")).unwrap();
        lose(&folder.join("checkpoints"));
        let before = world.trajectory();
        let said = world.fail(1, &["train", "config.toml"]);
        assert!(said.contains(named) && said.contains("--restart"), "{said}");
        assert!(said.contains("runs/small/checkpoints"), "{said}");
        if named == "holds none" {
            assert!(said.contains("a checkpoint of step 12"), "{said}");
        }
        assert!(world.trajectory() == before, "nothing is cut");

        // Restart the run and kill it before its first checkpoint: the old checkpoints no longer count.
        let restart = [
            "train",
            "config.toml",
            "--restart",
            "--set",
            "fault_injection.plan=[\"kill student 2\"]",
        ];
        let output = world
            .command(&restart)
            .env("DDK_ALLOW_FAULTS", "1")
            .output()
            .unwrap();
        assert!(
            stderr(&output).contains("starting over at step 0"),
            "{}",
            stderr(&output)
        );
        assert_eq!(output.status.code(), None);
        let said = stderr(&world.succeed(&["train", "config.toml"]));
        assert!(said.contains("no checkpoint was saved yet"), "{said}");
        assert_same(&world, &whole, named);
        // DDK sets the old files aside, and the event log keeps its history.
        let aside = read_lines(&folder.join("aside-1/run.jsonl"));
        assert!(aside == before["run.jsonl"]);
        let events = world.lines("events.jsonl");
        let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
        assert_eq!((of("started_over"), of("started"), of("saved")), (1, 3, 8));
    }
    let world = World::new();
    let said = world.fail(2, &["train", "config.toml", "--restart"]);
    assert!(
        said.contains("there is no run in runs/small to restart"),
        "{said}"
    );
    assert!(!world.run_folder().exists());
}

/// At first, the checkpoint that a fork starts from is its only one.
#[test]
fn a_fork_that_lost_its_checkpoint_does_not_begin_with_the_student() {
    let world = World::new();
    world.succeed(&["train", "config.toml"]);
    let fork = [
        "train",
        "config.toml",
        "--fork",
        "other",
        "--resume-from",
        "6",
    ];
    let plan = "fault_injection.plan=[\"kill student 7\"]";
    let mut killed = world.command(&[&fork[..], &["--set", plan]].concat());
    assert!(
        !killed
            .env("DDK_ALLOW_FAULTS", "1")
            .output()
            .unwrap()
            .status
            .success()
    );
    fs::remove_dir_all(world.path().join("runs/other/checkpoints")).unwrap();
    let said = world.fail(1, &fork);
    assert!(said.contains("a checkpoint of step 6"), "{said}");
}
