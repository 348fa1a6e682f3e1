//! Extends runs, finished or not, with a larger limit, and checks them bit for bit.

use std::fs;

use serde_json::Value;

use crate::world::{World, is_step, stderr, train_with};

fn train(world: &World, faults: &[&str], more: &[&str]) -> String {
    let output = train_with(world, faults, more);
    assert_eq!(
        output.status.success(),
        faults.is_empty(),
        "{}",
        stderr(&output)
    );
    stderr(&output)
}

fn summary(world: &World, name: &str) -> Value {
    let text = fs::read_to_string(world.run_folder().join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Each case has a first limit, a longer limit, the schedule's steps, and one more setting. The reference run has
/// the longer limit from the start, with the first limit's schedule. First limits fall at the end of an interval,
/// inside one, and inside the first one. Intervals have four steps or one.
#[test]
fn a_run_that_is_extended_equals_one_that_was_to_be_so_long_with_the_same_schedule() {
    let schedule = |steps: u64| format!("lr_scheduler.total_steps={steps}");
    for (limit, longer, steps, more) in [
        ("run.max_steps=8", "run.max_steps=14", 8, "mixture.lag=0"),
        ("run.max_steps=10", "run.max_steps=15", 10, "mixture.lag=0"),
        ("run.max_steps=3", "run.max_steps=9", 3, "mixture.lag=0"),
        ("run.max_steps=8", "run.max_steps=14", 8, "mixture.lag=1"),
        ("run.max_steps=10", "run.max_steps=15", 10, "mixture.lag=1"),
        (
            "run.max_steps=7",
            "run.max_steps=12",
            7,
            "mixture.policy=odm",
        ),
        (
            "run.max_steps=10",
            "run.max_steps=15",
            10,
            "mixture.policy=equal",
        ),
    ] {
        let what = format!("{limit} to {longer}, {more}");
        let whole = World::new();
        train(&whole, &[], &[longer, &schedule(steps), more]);
        let rates = whole.lines("run.jsonl");
        let added = &rates[steps as usize..];
        assert!(
            added.iter().all(|line| line["learning_rate"] == 5e-4),
            "{what}"
        );

        // One world extends a finished run, the other a killed one.
        let finished = World::new();
        train(&finished, &[], &[limit, more]);
        let short = finished.student_weights();
        let said = train(&finished, &[], &[longer, more]);
        assert!(said.contains(&format!("summary-{steps}.json")), "{said}");
        let killed = World::new();
        train(&killed, &[&format!("kill student {steps}")], &[limit, more]);
        train(&killed, &[], &[longer, more]);
        for world in [&finished, &killed] {
            assert!(world.trajectory() == whole.trajectory(), "{what}");
            assert!(world.student_weights() == whole.student_weights(), "{what}");
            assert_eq!(
                summary(world, "summary.json")["tokens"],
                summary(&whole, "summary.json")["tokens"],
                "{what}"
            );
        }
        assert_eq!(
            summary(&finished, &format!("summary-{steps}.json"))["steps"],
            steps
        );
        assert!(short != finished.student_weights());
    }
}

/// With limits on intervals and tokens, the schedule also keeps its length.
#[test]
fn other_limits_extend_a_run_too() {
    for (first, longer, set) in [
        (
            &["run.max_intervals=2"][..],
            &["run.max_intervals=3"][..],
            "lr_scheduler.total_steps=8",
        ),
        // Sequences are full: 256 tokens per step, so 8 steps.
        (
            &["run.max_tokens=2000"],
            &["run.max_tokens=3000"],
            "lr_scheduler.total_steps=8",
        ),
        (
            &["run.max_tokens=2000", "run.max_steps=90"],
            &["run.max_tokens=3000", "run.max_steps=95"],
            "lr_scheduler.total_steps=8",
        ),
    ] {
        // The shared configuration sets max_steps; remove it.
        let world = |sets: &[&str]| {
            let world = World::new();
            let config = fs::read_to_string(world.path().join("config.toml")).unwrap();
            fs::write(
                world.path().join("config.toml"),
                config.replace("max_steps = 12\n", ""),
            )
            .unwrap();
            train(&world, &[], sets);
            world
        };
        let whole = world(&[longer, &[set]].concat());
        let extended = world(first);
        assert_eq!(extended.lines("run.jsonl").len(), 8, "{first:?}");
        train(&extended, &[], longer);
        assert_eq!(extended.lines("run.jsonl").len(), 12, "{longer:?}");
        assert!(extended.trajectory() == whole.trajectory(), "{longer:?}");
        assert!(
            extended.student_weights() == whole.student_weights(),
            "{longer:?}"
        );
    }
}

/// A finished run always has a student, and the same command completes an extension that was killed.
#[test]
fn a_kill_in_an_extended_run_leaves_the_student_that_there_was() {
    let whole = World::new();
    train(
        &whole,
        &[],
        &["run.max_steps=16", "lr_scheduler.total_steps=12"],
    );
    let world = World::new();
    train(&world, &[], &[]);
    let short = world.student_weights();
    let longer = ["run.max_steps=16"];
    for kill in ["kill evaluation 1", "kill student 14", "kill save 16 4"] {
        train(&world, &[kill], &longer);
        assert!(world.student_weights() == short, "{kill}");
        assert!(!world.run_folder().join("summary.json").exists(), "{kill}");
        assert_eq!(summary(&world, "summary-12.json")["steps"], 12, "{kill}");
    }
    train(&world, &[], &longer);
    assert!(world.trajectory() == whole.trajectory());
    assert!(world.student_weights() == whole.student_weights());
    // The run is finished again, now with the new limit. DDK refuses a smaller limit in any case.
    let said = train(&world, &[], &longer);
    assert!(said.contains("is already finished"), "{said}");
    let said = world.fail(2, &["train", "config.toml"]);
    assert!(
        said.contains("`run.max_steps` was 16 and is now 12"),
        "{said}"
    );
    let events = world.lines("events.jsonl");
    let extended = events.iter().filter(|event| event["kind"] == "extended");
    assert_eq!(extended.count(), 1);
    // Extend once more: the schedule is still the first one.
    train(&world, &[], &["run.max_steps=20"]);
    let lines = world.lines("run.jsonl");
    assert!(lines.len() == 20 && lines[11..].iter().all(|line| line["learning_rate"] == 5e-4));
}

/// The steps of a finished run would have followed the learning rate, so it must be the same; other live settings may
/// differ.
#[test]
fn a_finished_run_refuses_another_learning_rate() {
    let world = World::new();
    train(&world, &[], &[]);
    let with = |set| ["train", "config.toml", "--set", set];
    let said = world.fail(2, &with("optimizer.lr=9e-3"));
    assert!(
        said.contains("finished run") && said.contains("optimizer.lr"),
        "{said}"
    );
    let said = stderr(&world.succeed(&with("checkpoint.interval=5")));
    assert!(said.contains("is already finished"), "{said}");
}

/// DDK leaves a finished run untouched if it has no checkpoint to resume from.
#[test]
fn a_run_without_checkpoints_is_not_extended() {
    let world = World::new();
    train(&world, &[], &[]);
    fs::remove_dir_all(world.run_folder().join("checkpoints")).unwrap();
    let said = world.fail(1, &["train", "config.toml", "--set", "run.max_steps=16"]);
    assert!(
        said.contains("a checkpoint of step 12") && said.contains("--restart"),
        "{said}"
    );
    assert!(world.run_folder().join("summary.json").exists());
    world.succeed(&["train", "config.toml"]);
    // After a restart, it is a new run with its own schedule.
    let restart = [
        "train",
        "config.toml",
        "--restart",
        "--set",
        "run.max_steps=16",
    ];
    let mut seen = false;
    let started = world.start_until(&restart, |line| {
        seen |= is_step(line, 12);
        seen
    });
    assert!(started.wait().0.success());
    let lines = world.lines("run.jsonl");
    assert!(lines.len() == 16 && lines[11]["learning_rate"] != 5e-4);
    assert_eq!(lines[15]["learning_rate"], 5e-4);
}
