//! Faults on purpose: what heals ends as if nothing had been, what does not stops with its cause and can be gone on with.

use std::fs;

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
        "faults.plan=[\"panic student 5\"]",
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
        (&["oom student 6"], "shrunk"),
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
        // What is out of memory goes on with half of this, which still is a whole micro-batch here: other chunks give other last bits.
        let output = train_with(&world, faults, &["objective.chunk=256"]);
        assert!(output.status.success(), "{faults:?}: {}", stderr(&output));
        assert!(!events(&world, kind).is_empty(), "{faults:?}");
        assert_same(&world, &whole, &format!("{faults:?}"));
    }
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
    // Many more rows than a loader reads ahead.
    let train = ["train", "config.toml", "--set", "run.max_steps=100"];
    let whole = World::new();
    whole.succeed(&train);
    let world = World::new();
    let file = world.path().join("prepared/rivers/tokens.bin");
    let tokens = fs::read(&file).unwrap();
    let stalled = [&train[..], &["--set", "faults.plan=[\"stall student 1\"]"]].concat();
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
        // Root may write everywhere unless it gives that up.
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

#[test]
fn a_process_that_dies_at_any_call_of_a_save_leaves_a_checkpoint_that_loads() {
    let whole = whole();
    let every = if scale() > 1 { 1 } else { 4 };
    let (mut call, mut died) = (1, 0);
    loop {
        let world = World::new();
        let output = train_with(&world, &[&format!("kill save 6 {call}")], &[]);
        if output.status.success() {
            break;
        }
        died += 1;
        let listed = world.succeed(&["checkpoints", "runs/small"]);
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(
            listed.contains("verified") && !listed.contains("damaged"),
            "call {call}: {listed}"
        );
        let newest = if listed.contains("         6 ") { 6 } else { 3 };
        let output = world.succeed(&["train", "config.toml"]);
        let went_on = format!("going on from step {newest} ");
        assert!(
            stderr(&output).contains(&went_on),
            "call {call}: {}",
            stderr(&output)
        );
        assert_same(&world, &whole, &format!("call {call}"));
        call += every;
    }
    assert!(died >= 16 / every, "only {died} calls");
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

    // The same where the teacher's word is none; an evaluation that is none leaves the mixture.
    let world = World::new();
    let output = train_with(&world, &["nan teacher 6", "nan evaluation 2"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(events(&world, "skipped")[0].contains("step 6"));
    assert!(events(&world, "refused")[0].contains("interval 1 stays"));
    let mixtures = world.lines("mixture.jsonl");
    let set: Vec<&Value> = mixtures
        .iter()
        .filter(|line| line["weights"].is_object())
        .collect();
    assert_eq!(set[1]["weights"], set[0]["weights"]);
    assert_ne!(set[2]["weights"], set[1]["weights"]);

    // Even the first evaluation of all: a checkpoint holds it, and the run goes on from there.
    let world = World::new();
    let output = train_with(&world, &["nan evaluation 1", "kill student 5"], &[]);
    assert!(output.status.code().is_none(), "{}", stderr(&output));
    world.succeed(&["train", "config.toml"]);
    assert!(events(&world, "refused")[0].contains("interval 0 stays"));

    // Twice in a row: back to the last checkpoint (step 3), and past the data of both steps.
    let world = World::new();
    let set = ["guard.max_skipped=2"];
    let output = train_with(&world, &["nan student 5", "nan student 6"], &set);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(events(&world, "rolled_back")[0].contains("steps 5 to 6"));
    let lines = world.lines("run.jsonl");
    let reason = |step: usize| lines[step - 1]["skipped"].as_str().unwrap_or_default();
    assert!(reason(5).contains("skip list") && reason(6).contains("skip list"));
    assert_eq!(lines.len() as u64, STEPS);
    let learnt = fs::read_to_string(world.run_folder().join("healing.json")).unwrap();
    let learnt: Value = serde_json::from_str(&learnt).unwrap();
    assert_eq!(learnt["skip"], serde_json::json!([5, 6]));

    // A kill after the rolling back does not undo it.
    let killed = World::new();
    let plan = ["nan student 5", "nan student 6", "kill student 8"];
    assert!(!train_with(&killed, &plan, &set).status.success());
    assert!(train_with(&killed, &[], &set).status.success());
    assert!(killed.trajectory() == world.trajectory());
    assert!(killed.student_weights() == world.student_weights());

    // Where it goes on, the run stops.
    let world = World::new();
    let set = ["guard.max_skipped=1", "guard.max_rollbacks=1"];
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
    // A student that hardly learns, and a limit far below what losses vary by: a loss above the mean is a spike.
    let guard = [
        "guard.spike_sigmas=1e-9",
        "guard.spike_from=2",
        "student.lr=1e-9",
        "student.lr_end=1e-9",
        "guard.max_rollbacks=12",
    ];
    let spikes = |action: &str| {
        let world = World::new();
        let action = format!("guard.spike={action}");
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
                match kind.ends_with("save") {
                    true => format!("{kind} {} {}", 3 * (1 + draw(4)), 1 + draw(18)),
                    false => format!("{kind} {}", 1 + draw(12)),
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
