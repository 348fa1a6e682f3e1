//! Pretraining resumes to the same model after any interruption, and DDK trains a finished model only once.

use std::fs;

use crate::world::{Started, World, stderr};

const PRETRAIN: [&str; 4] = ["pretrain", "config.toml", "--model", "teacher"];

/// The model's weights, and the lines of the run that made it.
fn made(world: &World) -> (Vec<u8>, String) {
    let read = |path: &str| fs::read(world.path().join(path)).unwrap();
    let steps = String::from_utf8(read("models/teacher.run/run.jsonl")).unwrap();
    let without_times: String = steps
        .lines()
        .map(|line| line.split(",\"seconds\"").next().unwrap().to_owned() + "\n")
        .collect();
    (read("models/teacher/model.safetensors"), without_times)
}

/// A world whose teacher is not pretrained yet.
fn without_teacher() -> World {
    let world = World::new();
    for folder in ["models/teacher", "models/teacher.run"] {
        fs::remove_dir_all(world.path().join(folder)).unwrap();
    }
    world
}

#[test]
fn a_killed_or_stopped_pretraining_resumes_to_the_same_bits() {
    let expected = made(&World::new());
    assert_eq!(expected.1.lines().count(), 60);
    for plan in [
        "kill student 1",
        "kill student 40",
        "kill save 30 2",
        "kill export 1",
    ] {
        let world = without_teacher();
        let plan = format!("fault_injection.plan=[\"{plan}\"]");
        let mut command = world.command(&[&PRETRAIN[..], &["--set", &plan]].concat());
        command.env("DDK_ALLOW_FAULTS", "1");
        let killed = command.output().unwrap();
        assert_eq!(killed.status.code(), None, "{plan}: {}", stderr(&killed));
        let resumed = stderr(&world.succeed(&PRETRAIN));
        let resumes = plan.contains("kill student 1\"") || resumed.contains("from step");
        assert!(resumes, "{plan}: {resumed}");
        assert!(made(&world) == expected, "{plan}");
    }
    // Stop it before its first step and after its last one.
    for (fault, signal, code) in [
        ("hang evaluation 1", "INT", 130),
        ("hang evaluation 2", "TERM", 143),
    ] {
        let world = without_teacher();
        let plan = format!("fault_injection.plan=[\"{fault}\"]");
        let mut command = world.command(&[&PRETRAIN[..], &["--set", &plan]].concat());
        command.env("DDK_ALLOW_FAULTS", "1");
        let held = format!("fault on purpose: {fault}");
        let started = Started::of(command, |line| line == held);
        started.signal(signal);
        let (status, said) = started.wait();
        assert_eq!(status.code(), Some(code), "{said}");
        world.succeed(&PRETRAIN);
        assert!(made(&world) == expected, "SIG{signal}: {said}");
    }
}

#[test]
fn a_finished_model_is_made_again_only_if_what_it_is_made_from_has_changed() {
    let world = World::new();
    let with = |sets: &[&str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let arguments: Vec<&str> = PRETRAIN.into_iter().chain(sets).collect();
        stderr(&world.succeed(&arguments))
    };
    let there = "models/teacher already exists";
    assert!(with(&[]).contains(there));
    // The thread count changes the last bits and the speed, but does not call for a new model.
    assert!(with(&["pretrain.teacher.threads=2"]).contains(there));
    let record = world.path().join("models/teacher/pretrain.json");
    let text = fs::read_to_string(&record).unwrap();
    let made_from: serde_json::Value = serde_json::from_str(&text).unwrap();
    let model = made_from["model"].as_object().unwrap();
    assert!(!model.values().any(serde_json::Value::is_null), "{text}");
    let said = with(&["pretrain.teacher.steps=6"]);
    assert!(said.contains("trained with other settings"), "{said}");
    let steps = |folder: &str| {
        let text = fs::read_to_string(world.path().join(folder).join("run.jsonl")).unwrap();
        text.lines().count()
    };
    assert_eq!(steps("models/teacher.run"), 6);
    // DDK sets aside the work of an interrupted run with other settings.
    let said = with(&["pretrain.teacher.steps=5"]);
    assert!(said.contains("starting over at step 0"), "{said}");
    assert_eq!(steps("models/teacher.run"), 5);
}

#[test]
fn an_interrupted_run_resumes_on_another_machine_and_costs_no_other_model() {
    let expected = made(&World::new());
    let world = without_teacher();
    let kill = |sets: &[&str]| {
        let plan = ["--set", "fault_injection.plan=[\"kill student 40\"]"];
        let mut command = world.command(&[&PRETRAIN[..], &plan[..], sets].concat());
        command.env("DDK_ALLOW_FAULTS", "1");
        assert_eq!(command.output().unwrap().status.code(), None);
    };
    kill(&[]);
    // Change the number of cores and settings that pretraining does not use.
    let sets = [
        "pretrain.teacher.threads=2",
        "objective.gamma=0.7",
        "mixture.alpha=0.1",
    ];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let arguments: Vec<&str> = PRETRAIN.into_iter().chain(sets).collect();
    let resumed = stderr(&world.succeed(&arguments));
    assert!(resumed.contains("from step"), "{resumed}");
    assert!(made(&world) == expected);

    // An unfinished run with other settings does not make DDK retrain a finished model.
    kill(&["--set", "pretrain.teacher.lr=0.02"]);
    let said = stderr(&world.succeed(&PRETRAIN));
    assert!(said.contains("already exists"), "{said}");
    assert!(made(&world).0 == expected.0);
    // --force starts over.
    let said = stderr(&world.succeed(&[&PRETRAIN[..], &["--force"]].concat()));
    assert!(said.contains("starting over at step 0"), "{said}");
    assert!(made(&world) == expected);
}

#[test]
fn folders_of_others_are_refused() {
    let world = without_teacher();
    let run = world.path().join("models/teacher.run");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("config.toml"), "mine = true").unwrap();
    let said = world.fail(2, &PRETRAIN);
    assert!(
        said.contains("contains files that `ddk pretrain` did not write"),
        "{said}"
    );
    assert_eq!(
        fs::read_to_string(run.join("config.toml")).unwrap(),
        "mine = true"
    );
    let other = r#"{"model": {"output_dir": "models/other"}}"#;
    fs::write(run.join("pretrain.json"), other).unwrap();
    let said = world.fail(2, &PRETRAIN);
    assert!(
        said.contains("teacher.run belongs to the model in models/other"),
        "{said}"
    );
    let same = [
        &PRETRAIN[..],
        &["--set", "pretrain.teacher.output_dir=tokenizer"],
    ]
    .concat();
    let said = world.fail(2, &same);
    assert!(said.contains("the folder of the tokenizer"), "{said}");
}

#[test]
fn pretraining_is_watched_like_any_run() {
    let world = without_teacher();
    world.succeed(
        &[
            &PRETRAIN[..],
            &["--set", "telemetry.metrics_file=metrics.prom"],
        ]
        .concat(),
    );
    let metrics = fs::read_to_string(world.path().join("metrics.prom")).unwrap();
    for expected in [
        "ddk_steps_total{run=\"teacher.run\"} 60",
        "ddk_step{run=\"teacher.run\"} 60",
        "ddk_perplexity{run=\"teacher.run\",model=\"student\",domain=\"coins\"}",
    ] {
        assert!(metrics.contains(expected), "{expected}: {metrics}");
    }
    assert!(!metrics.contains("model=\"teacher\",domain"), "{metrics}");
    let run = "models/teacher.run";
    for file in ["summary.json", "report.html", "run.log", "checkpoints"] {
        assert!(world.path().join(run).join(file).exists(), "{file}");
    }
    let watched = String::from_utf8(world.succeed(&["watch", run]).stdout).unwrap();
    assert!(watched.contains("60"), "{watched}");
}
