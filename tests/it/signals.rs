//! SIGTERM and SIGINT in every phase of every long command: the process reports what it was doing and exits with
//! 143 or 130. Repeating the command then gives the same result.
//!
//! An injected fault holds the process in the phase until the signal arrives, so no test depends on timing.

use std::{fs, path::Path};

use crate::world::{Started, World, assert_same, whole};

/// Starts `ddk`, waits until the fault holds it, and sends the signal. Asserts the signal's exit code and returns
/// standard error.
fn stopped(world: &World, arguments: &[&str], fault: &str, signal: &str) -> String {
    let plan = format!("fault_injection.plan=[\"{fault}\"]");
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--set", &plan]).collect();
    let mut command = world.command(&arguments);
    command.env("DDK_ALLOW_FAULTS", "1");
    let held = format!("fault on purpose: {fault}");
    let started = Started::of(command, |line| line == held);
    started.signal(signal);
    let (status, said) = started.wait();
    let code = if signal == "TERM" { 143 } else { 130 };
    assert_eq!(status.code(), Some(code), "{fault}: {said}");
    assert!(said.contains(&format!("SIG{signal}: ")), "{fault}: {said}");
    said
}

/// The kind and step of the last event.
fn last_event(world: &World) -> (String, u64) {
    let event = world.lines("events.jsonl").pop().unwrap();
    let kind = event["kind"].as_str().unwrap().to_owned();
    (kind, event["step"].as_u64().unwrap())
}

#[test]
fn a_run_stops_in_every_phase_and_goes_on_to_the_same_result() {
    let whole = whole();
    // The fault that holds the phase, the signal, the expected message, and the event's step if the run has a folder.
    let cases = [
        (
            "hang prepare 1",
            "TERM",
            "stopped while preparing the corpus; ",
            None,
        ),
        (
            "hang hash 1",
            "TERM",
            "stopped while checking and hashing models and corpus; ",
            None,
        ),
        (
            "hang load 1",
            "TERM",
            "stopped while loading the models; ",
            Some(0),
        ),
        (
            "hang evaluation 1",
            "INT",
            "stopped before its first step, nothing to save; ",
            Some(0),
        ),
        (
            "hang evaluation 3",
            "TERM",
            "stopped after step 8, saved; ",
            Some(8),
        ),
        // The last evaluation: all steps are saved before it starts.
        (
            "hang evaluation 4",
            "TERM",
            "stopped after step 12, saved; ",
            Some(12),
        ),
        (
            "hang export 1",
            "INT",
            "stopped while exporting the student; ",
            Some(12),
        ),
        (
            "hang serial 1",
            "TERM",
            "stopped while measuring the serial baseline; ",
            Some(12),
        ),
    ];
    for (fault, signal, expected, step) in cases {
        let world = World::new();
        let train = ["train", "config.toml", "--serial-baseline", "2"];
        let said = stopped(&world, &train, fault, signal);
        assert!(said.contains(expected), "{fault}: {said}");
        match step {
            Some(step) => assert_eq!(last_event(&world), ("stopped".to_owned(), step), "{fault}"),
            None => assert!(!world.run_folder().exists(), "{fault}"),
        }
        assert!(!world.run_folder().join("summary.json").exists(), "{fault}");
        world.succeed(&train);
        assert_same(&world, &whole, fault);
        assert!(world.run_folder().join("report.html").exists(), "{fault}");
    }
}

#[test]
fn a_run_that_is_summed_up_stays_done_when_its_report_is_cut_short() {
    let world = World::new();
    let said = stopped(&world, &["train", "config.toml"], "hang report 1", "TERM");
    assert!(
        said.contains("stopped while writing the report; the run is done"),
        "{said}"
    );
    assert_ne!(last_event(&world).0, "stopped");
    assert!(!world.run_folder().join("report.html").exists());
    let output = world.succeed(&["train", "config.toml"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is already finished"));
    assert!(world.run_folder().join("report.html").exists());
}

#[test]
fn the_measurement_of_threads_is_made_again() {
    let world = World::new();
    let train = ["train", "config.toml", "--set", "pipeline.threads=auto"];
    let said = stopped(&world, &train, "hang threads 1", "TERM");
    assert!(
        said.contains("stopped while measuring how to share the cores"),
        "{said}"
    );
    assert!(!world.run_folder().exists());
    world.succeed(&train);
    assert!(world.run_folder().join("summary.json").exists());
}

#[test]
fn doremi_stops_between_its_phases_too() {
    let world = World::new();
    let train = [
        "train",
        "config.toml",
        "--set",
        "mixture.policy=doremi",
        "--set",
        "mixture.doremi_steps=4",
    ];
    // The second model that this process loads is the proxy's.
    let said = stopped(&world, &train, "hang export 1", "TERM");
    assert!(said.contains("doremi, phase 1 of 3"), "{said}");
    let reference = world.run_folder().join("phases/reference");
    let events = fs::read_to_string(reference.join("events.jsonl")).unwrap();
    assert!(
        events.lines().last().unwrap().contains("\"stopped\""),
        "{events}"
    );
    world.succeed(&train);
    let undisturbed = World::new();
    undisturbed.succeed(&train);
    assert_same(&world, &undisturbed, "doremi");
}

#[test]
fn every_long_command_ends_at_once_and_can_be_given_again() {
    let world = World::new();
    fs::remove_dir_all(world.path().join("prepared")).unwrap();
    let commands: [(&[&str], &str, &str); 6] = [
        (
            &["prepare", "config.toml"],
            "hang prepare 1",
            "preparing the corpus; ",
        ),
        (
            &["prepare", "config.toml", "--verify"],
            "hang verify 1",
            "verifying the prepared corpus; ",
        ),
        (
            &["pretrain", "config.toml", "--model", "student", "--force"],
            "hang load 1",
            "loading the models; the same command resumes from the last checkpoint",
        ),
        (
            &["eval", "config.toml", "--model", "models/teacher"],
            "hang evaluate 1",
            "evaluating; ",
        ),
        (
            &["bench", "config.toml", "--seconds", "0"],
            "hang bench 1",
            "measuring; ",
        ),
        (
            &["eval", "config.toml", "--model", "models/teacher"],
            "hang prepare 1",
            "preparing the corpus; ",
        ),
    ];
    let weights = |world: &World| fs::read(world.path().join("models/student/model.safetensors"));
    let before = weights(&world).unwrap();
    for (arguments, fault, expected) in commands {
        let said = stopped(&world, arguments, fault, "TERM");
        assert!(
            said.contains(&format!("stopped while {expected}")),
            "{said}"
        );
        world.succeed(arguments);
    }
    assert_eq!(weights(&world).unwrap(), before);
}

#[test]
fn the_demo_stops_before_it_has_made_anything() {
    let world = World::empty();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo.toml");
    let demo = ["demo", "--config", config.to_str().unwrap()];
    let said = stopped(&world, &demo, "hang text 1", "TERM");
    assert!(
        said.contains("stopped while collecting text and training the tokenizer; "),
        "{said}"
    );
    assert_eq!(fs::read_dir(world.path()).unwrap().count(), 0);
}
