//! Injected faults. A run that recovers ends as if nothing had happened. Any other run reports the cause, stops,
//! and can be resumed.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::world::{STEPS, World, assert_same, scale, stderr, train_with, whole};

fn events(world: &World, kind: &str) -> Vec<String> {
    let lines = world.lines("events.jsonl");
    let of_kind = lines.iter().filter(|event| event["kind"] == kind);
    of_kind
        .map(|event| event["message"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn faults_are_refused_unless_they_are_allowed() {
    let world = World::new();
    let train = [
        "train",
        "config.toml",
        "--set",
        "fault_injection.plan=[\"panic student 5\"]",
    ];
    let said = world.fail(2, &train);
    assert!(said.contains("DDK_ALLOW_FAULTS"), "{said}");
    let output = train_with(&world, &["melt student 5"], &[]);
    assert!(
        stderr(&output).contains("melt student 5"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn what_heals_ends_as_if_nothing_had_been() {
    let whole = whole();
    for (faults, kind) in [
        (&["panic student 5"][..], "rewound"),
        (&["panic student 1"], "rewound"),
        (&["panic batcher 6"], "rewound"),
        (&["panic evaluation 2"], "rewound"),
        (&["unreadable loader 5"], "restarted"),
        (&["panic teacher 7", "panic loader 3"], "restarted"),
        (
            &["panic student 4", "panic student 9", "panic teacher 9"],
            "rewound",
        ),
        (&["enospc save 6 4"], "save_failed"),
        (&["eio save 3 9"], "save_failed"),
        (
            &[
                "stall teacher 4",
                "stall student 8",
                "stall loader 5",
                "stall batcher 6",
                "stall evaluation 2",
                "stall save 3 2",
            ],
            "started",
        ),
    ] {
        let world = World::new();
        let output = train_with(&world, faults, &[]);
        assert!(output.status.success(), "{faults:?}: {}", stderr(&output));
        assert!(!events(&world, kind).is_empty(), "{faults:?}");
        assert_same(&world, &whole, &format!("{faults:?}"));
    }
}

/// The settings that DDK changed to shrink the run, in order.
fn sizes(world: &World) -> Vec<String> {
    let lines = world.lines("overrides.jsonl");
    let sets = lines.iter().map(|line| line["set"].as_object().unwrap());
    let text = |set: &serde_json::Map<String, Value>| {
        let values = set.iter().map(|(key, value)| format!("{key}={value}"));
        values.collect::<Vec<_>>().join(" ")
    };
    sets.map(text).collect()
}

/// Each part that runs out of memory shrinks its own work, starting with the cheapest size.
#[test]
fn a_device_without_memory_makes_smaller_what_ran_out_of_it() {
    for (faults, smaller) in [
        (
            &[
                "oom student 2",
                "oom student 5",
                "oom student 6",
                "oom student 8",
            ][..],
            &[
                "training.micro_batch_size=2",
                "training.micro_batch_size=1",
                "student.activation_checkpointing=true",
                "objective.chunk_size=128",
            ][..],
        ),
        (
            &["oom teacher 2", "oom teacher 6"],
            &["teacher.batch_size=2", "teacher.batch_size=1"],
        ),
        (&["oom evaluation 2"], &["evaluation.batch_size=8"]),
    ] {
        let world = World::new();
        let set = ["objective.chunk_size=256", "evaluation.batch_size=16"];
        let output = train_with(&world, faults, &set);
        assert!(output.status.success(), "{faults:?}: {}", stderr(&output));
        assert_eq!(sizes(&world), smaller, "{faults:?}");
        assert_eq!(events(&world, "shrunk").len(), smaller.len(), "{faults:?}");
        assert_eq!(world.lines("run.jsonl").len() as u64, STEPS);
    }
    // In this run, no size is left to shrink.
    let world = World::new();
    let set = ["training.micro_batch_size=1"];
    let output = train_with(&world, &["oom teacher 3"], &set);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("teacher-0 failed: on purpose"),
        "{}",
        stderr(&output)
    );
}

/// A smaller chunk changes no bit as long as it holds a whole micro-batch.
#[test]
fn a_head_that_takes_fewer_positions_ends_as_if_nothing_had_been() {
    let set = [
        "training.micro_batch_size=1",
        "student.activation_checkpointing=true",
        "objective.chunk_size=256",
    ];
    let (whole, world) = (World::new(), World::new());
    assert!(train_with(&whole, &[], &set).status.success());
    let output = train_with(&world, &["oom student 6"], &set);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(sizes(&world), ["objective.chunk_size=128"]);
    assert_same(&world, &whole, "oom student 6");
}

#[test]
fn what_does_not_heal_stops_with_its_cause_and_can_be_gone_on_with() {
    let whole = whole();
    for (faults, named) in [
        (&["panic save 6"][..], "checkpointer"),
        (
            &[
                "panic student 4",
                "panic student 5",
                "panic student 6",
                "panic student 7",
            ],
            "student",
        ),
    ] {
        let world = World::new();
        let output = train_with(&world, faults, &[]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{faults:?}: {}",
            stderr(&output)
        );
        assert!(
            stderr(&output).contains(named),
            "{faults:?}: {}",
            stderr(&output)
        );
        assert!(!events(&world, "failed").is_empty(), "{faults:?}");
        world.succeed(&["train", "config.toml"]);
        assert_same(&world, &whole, &format!("{faults:?}"));
    }
}

#[test]
fn a_token_file_that_cannot_be_read_stops_the_run_with_file_and_place() {
    // Many more sequences than a loader reads ahead.
    let train = ["train", "config.toml", "--set", "run.max_steps=100"];
    let whole = World::new();
    whole.succeed(&train);
    let world = World::new();
    let file = world.path().join("prepared/rivers/tokens.bin");
    let tokens = fs::read(&file).unwrap();
    let stalled = [
        &train[..],
        &["--set", "fault_injection.plan=[\"stall student 1\"]"],
    ]
    .concat();
    let started = world.start_until_with(&stalled, &[("DDK_ALLOW_FAULTS", "1")], |line| {
        line.contains("fault on purpose: stall student 1")
    });
    let open = fs::File::options().write(true).open(&file).unwrap();
    open.set_len(0).unwrap();
    let (status, said) = started.wait();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("loader-rivers failed: cannot read prepared/rivers/tokens.bin at byte "),
        "{said}"
    );
    assert_eq!(events(&world, "restarted").len(), 3);
    fs::write(&file, tokens).unwrap();
    world.succeed(&train);
    assert!(world.trajectory() == whole.trajectory());
    assert!(world.student_weights() == whole.student_weights());
}

#[test]
fn a_run_folder_that_cannot_be_written_is_named() {
    let world = World::new();
    fs::create_dir_all(world.path().join("runs/small")).unwrap();
    let command = format!(
        "chmod 555 runs/small && exec {} {} train config.toml",
        // Root can write anywhere unless it drops that capability.
        "$([ $(id -u) = 0 ] && echo setpriv --bounding-set=-dac_override --inh-caps=-dac_override)",
        env!("CARGO_BIN_EXE_ddk")
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .current_dir(world.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("cannot open runs/small/lock")
            && stderr(&output).contains("Permission denied"),
        "{}",
        stderr(&output)
    );
}

/// Calls that remove a checkpoint: the rename and its fsync, seven files, the folder.
const REMOVE: u64 = 2 + 7 + 1;

/// When a process dies during a save, the order of its calls, not the folder, tells which checkpoint the run
/// resumes from. The second-to-last call, not counting removals, names the checkpoint. A process that dies at that
/// call or earlier leaves the previous checkpoint, or none.
#[test]
fn a_process_that_dies_at_any_call_of_a_save_goes_on_from_the_checkpoint_that_must_be_there() {
    let whole = whole();
    for (step, keep, before, removals) in [(3, 3, None, 0), (6, 3, Some(3), 0), (6, 1, Some(3), 1)]
    {
        let keep = format!("checkpoint.keep_latest={keep}");
        let dies = |world: &World, call: u64| {
            let plan = format!("kill save {step} {call}");
            !train_with(world, &[&plan], &[&keep]).status.success()
        };
        // The test does not know how many calls a save makes, so it searches for the last one.
        let has = last_call(|call| dies(&World::new(), call));
        let named = has - removals * REMOVE - 1;
        let ends = [1, 2, named - 1, named, named + 1, has];
        let share = has.div_ceil(4 * scale()).max(1);
        let calls: BTreeSet<u64> = (1..=has).step_by(share as usize).chain(ends).collect();
        for call in calls {
            let what = format!("call {call} of {has} in the save of step {step}, {keep}");
            let world = World::new();
            assert!(dies(&world, call), "{what}");
            let expected = if call > named { Some(step) } else { before };
            let output = world.succeed(&["train", "config.toml", "--set", &keep]);
            let said = stderr(&output);
            match expected {
                Some(step) => assert!(
                    said.contains(&format!("resuming from step {step} ")),
                    "{what}: {said}"
                ),
                None => assert!(!said.contains("resuming from"), "{what}: {said}"),
            }
            assert_same(&world, &whole, &what);
            let left = fs::read_dir(world.run_folder().join("checkpoints")).unwrap();
            let left = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let left: Vec<String> = left.filter(|name| !name.starts_with("step-")).collect();
            assert!(left.is_empty(), "{what}: {left:?}");
        }
    }
}

/// The new checkpoint is complete. If DDK cannot remove an old one, it warns, and the run still succeeds.
#[test]
fn a_retention_that_fails_is_a_warning_and_the_save_counts() {
    let whole = whole();
    let failing = |call: u64| {
        let world = World::new();
        let output = train_with(
            &world,
            &[&format!("eio save 9 {call}")],
            &["checkpoint.keep_latest=1"],
        );
        assert!(output.status.success(), "{}", stderr(&output));
        (world, stderr(&output))
    };
    // After the last call that makes the save fail comes the first call that removes the previous checkpoint.
    let last = last_call(|call| !events(&failing(call).0, "save_failed").is_empty());
    let (world, said) = failing(last + 1);
    assert!(said.contains("retention_failed: cannot rename"), "{said}");
    assert_eq!(events(&world, "retention_failed").len(), 1);
    assert!(events(&world, "save_failed").is_empty());
    assert_same(&world, &whole, "a retention that failed");
}

/// The last call of a save for which `holds` is true. It must be true for all earlier calls too.
fn last_call(mut holds: impl FnMut(u64) -> bool) -> u64 {
    let (mut last, mut beyond) = (16, 256);
    while beyond - last > 1 {
        let middle = (last + beyond) / 2;
        if holds(middle) {
            last = middle
        } else {
            beyond = middle
        }
    }
    last
}

#[test]
fn a_number_that_is_none_skips_one_update_and_several_are_passed_over() {
    let world = World::new();
    let output = train_with(&world, &["nan student 6"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let skipped: Vec<u64> = world
        .lines("run.jsonl")
        .iter()
        .filter(|line| line.get("skipped").is_some_and(|reason| !reason.is_null()))
        .map(|line| line["step"].as_u64().unwrap())
        .collect();
    assert_eq!(skipped, [6]);
    assert!(events(&world, "skipped")[0].contains("step 6"));

    // A NaN from the teacher also skips the update. A NaN from an evaluation leaves the mixture unchanged.
    let world = World::new();
    let output = train_with(&world, &["nan teacher 6", "nan evaluation 2"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(events(&world, "skipped")[0].contains("step 6"));
    assert!(events(&world, "refused")[0].contains("interval 1 is unchanged"));
    let mixtures = world.lines("mixture.jsonl");
    let set: Vec<&Value> = mixtures
        .iter()
        .filter(|line| line["weights"].is_object())
        .collect();
    assert_eq!(set[1]["weights"], set[0]["weights"]);
    assert_ne!(set[2]["weights"], set[1]["weights"]);

    // Even the very first evaluation may be NaN: a checkpoint holds it, and the run resumes from there.
    let world = World::new();
    let output = train_with(&world, &["nan evaluation 1", "kill student 5"], &[]);
    assert!(output.status.code().is_none(), "{}", stderr(&output));
    world.succeed(&["train", "config.toml"]);
    assert!(events(&world, "refused")[0].contains("interval 0 is unchanged"));

    // Two in a row: the run rewinds to its last checkpoint (step 3) and skips the data of both steps.
    let world = World::new();
    let set = ["recovery.max_consecutive_skips=2"];
    let output = train_with(&world, &["nan student 5", "nan student 6"], &set);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(events(&world, "rolled_back")[0].contains("steps 5 to 6"));
    let lines = world.lines("run.jsonl");
    let reason = |step: usize| lines[step - 1]["skipped"].as_str().unwrap_or_default();
    assert!(reason(5).contains("skip list") && reason(6).contains("skip list"));
    assert_eq!(lines.len() as u64, STEPS);
    let learned = world.lines("overrides.jsonl");
    assert_eq!(learned[0]["skip_steps"], serde_json::json!([5, 6]));

    // A kill after the rewind does not undo it.
    let killed = World::new();
    let plan = ["nan student 5", "nan student 6", "kill student 8"];
    assert!(!train_with(&killed, &plan, &set).status.success());
    assert!(train_with(&killed, &[], &set).status.success());
    assert!(killed.trajectory() == world.trajectory());
    assert!(killed.student_weights() == world.student_weights());

    // If it happens again, the run stops.
    let world = World::new();
    let set = [
        "recovery.max_consecutive_skips=1",
        "recovery.max_rollbacks=1",
    ];
    let output = train_with(&world, &["nan student 5", "nan student 7"], &set);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("no update could be made"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_spike_is_told_skipped_or_rolled_back() {
    // The student hardly learns, and the threshold is far below the losses' variation: any loss above the mean is a
    // spike.
    let guard = [
        "recovery.spike_threshold=1e-9",
        "recovery.spike_min_history=2",
        "optimizer.lr=1e-9",
        "lr_scheduler.min_lr=1e-9",
        "recovery.max_rollbacks=12",
    ];
    let spikes = |action: &str| {
        let world = World::new();
        let action = format!("recovery.spike_action={action}");
        let settings: Vec<&str> = guard.iter().copied().chain([action.as_str()]).collect();
        let output = train_with(&world, &[], &settings);
        assert!(output.status.success(), "{}", stderr(&output));
        (
            events(&world, "spike").len(),
            events(&world, "skipped").len(),
            events(&world, "rolled_back").len(),
        )
    };
    let (told, none, nothing) = spikes("warn");
    assert!(
        told > 0 && none == 0 && nothing == 0,
        "{told} {none} {nothing}"
    );
    let (_, skipped, nothing) = spikes("skip");
    assert!(skipped > 0 && nothing == 0);
    let (_, _, rolled_back) = spikes("roll-back");
    assert!(rolled_back > 0);
    assert_eq!(spikes("ignore"), (0, 0, 0));
}

#[test]
fn random_faults_end_as_without_them_or_with_a_cause_to_go_on_from() {
    let whole = whole();
    let kinds = [
        "panic student",
        "panic teacher",
        "panic loader",
        "stall student",
        "stall teacher",
        "kill student",
        "kill teacher",
        "enospc save",
        "eio save",
        "kill save",
        "unreadable loader",
        "panic save",
        "panic batcher",
        "kill batcher",
        "stall evaluation",
        "kill evaluation",
    ];
    for seed in 0..20 * scale() {
        let mut rng = ddk_order::stream(seed, "fault plans", &[]);
        let mut draw = |bound: u64| ddk_order::below(&mut rng, bound);
        let plan: Vec<String> = (0..1 + draw(5))
            .map(|_| {
                let kind = kinds[draw(kinds.len() as u64) as usize];
                if kind.ends_with("save") {
                    format!("{kind} {} {}", 3 * (1 + draw(4)), 1 + draw(18))
                } else {
                    format!("{kind} {}", 1 + draw(12))
                }
            })
            .collect();
        let faults: Vec<&str> = plan.iter().map(String::as_str).collect();
        let world = World::new();
        let output = train_with(&world, &faults, &[]);
        if !output.status.success() {
            let killed = output.status.code().is_none();
            assert!(
                killed || stderr(&output).contains("error: "),
                "seed {seed}: {plan:?}"
            );
            world.succeed(&["train", "config.toml"]);
        }
        assert_same(&world, &whole, &format!("seed {seed}: {plan:?}"));
    }
}
