//! Runs that are killed, stopped, or cannot save, and go on as if nothing had been.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus},
};

use crate::world::{World, stderr};

/// Steps at which a run is killed: a tenth of the full count at scale 1.
fn kill_steps() -> Vec<u64> {
    let scale: u64 = std::env::var("DDK_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    // Before the first save, just after one, at an interval's end, in a later interval.
    let all = [1, 8, 10, 7, 4, 2, 5, 6, 9, 3, 11];
    all[..(3 * scale as usize).min(all.len())].to_vec()
}

fn is_step(line: &str, step: u64) -> bool {
    line.contains(&format!("step {step}/"))
}

/// A run that was sent a signal when it had said that it made `step`; its end, and all that it said.
///
/// A run may be over before the signal reaches it, on a busy machine: then another one is tried.
fn signalled(signal: &str, step: u64) -> (World, ExitStatus, String) {
    for _ in 0..20 {
        let world = World::new();
        let started = world.start_until(&["train", "config.toml"], |line| is_step(line, step));
        started.signal(signal);
        let (status, said) = started.wait();
        if !status.success() {
            return (world, status, said);
        }
        eprintln!("the run was over before SIG{signal} came; trying again");
    }
    panic!("20 runs were over before SIG{signal} came");
}

/// The step of the newest complete checkpoint.
fn newest_checkpoint(world: &World) -> Option<usize> {
    let entries = fs::read_dir(world.run_folder().join("checkpoints")).ok()?;
    entries
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter_map(|name| name.strip_prefix("step-")?.parse().ok())
        .max()
}

#[test]
fn a_killed_run_goes_on_bit_for_bit() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    let mut resumed = 0;
    for step in kill_steps() {
        eprintln!("kill after step {step}");
        let (world, status, _) = signalled("KILL", step);
        assert_eq!(status.signal(), Some(9));
        // Saves run beside the training, so the newest one may be older than the last multiple of `checkpoint.every`.
        let saved = newest_checkpoint(&world);
        let output = world.succeed(&["train", "config.toml"]);
        let went_on = saved.map(|saved| format!("going on from step {saved} "));
        assert!(
            went_on.is_none_or(|words| stderr(&output).contains(&words)),
            "{saved:?} was saved: {}",
            stderr(&output)
        );
        resumed += u32::from(saved.is_some());
        assert!(
            whole.trajectory() == world.trajectory(),
            "killed after step {step}"
        );
        assert!(
            whole.student_weights() == world.student_weights(),
            "killed after step {step}"
        );
    }
    assert!(resumed > 0, "no run was killed after a save");
}

#[test]
fn a_signal_stops_after_a_save_and_the_run_goes_on_from_there() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let (world, status, said) = signalled(signal, 5);
        assert_eq!(status.code(), Some(code), "{said}");
        assert_eq!(
            world.lines("run.jsonl").len(),
            newest_checkpoint(&world).unwrap(),
            "saved at the last step made"
        );
        world.succeed(&["train", "config.toml"]);
        assert!(whole.trajectory() == world.trajectory());
        assert!(whole.student_weights() == world.student_weights());
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_loudly() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    let (world, ..) = signalled("TERM", 8);
    let checkpoints = world.run_folder().join("checkpoints");
    let mut names: Vec<String> = fs::read_dir(&checkpoints)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
        .filter(|name| name.starts_with("step-"))
        .collect();
    names.sort();
    let newest = checkpoints.join(names.last().unwrap());
    let file = newest.join("weights.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).unwrap();
    let output = world.succeed(&["train", "config.toml"]);
    assert!(
        stderr(&output).contains(names.last().unwrap())
            && stderr(&output).contains("weights.safetensors"),
        "{}",
        stderr(&output)
    );
    assert!(whole.trajectory() == world.trajectory());
    assert!(whole.student_weights() == world.student_weights());
}

#[test]
fn a_disk_that_fills_during_a_save_keeps_the_last_good_checkpoint() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    let (world, ..) = signalled("TERM", 5);
    let saved = world.lines("run.jsonl").len();

    // A limit on the size of files stands in for the full disk: writes past it fail, and the program hears of it as an
    // error because the signal that comes with it is ignored.
    let program = env!("CARGO_BIN_EXE_ddk");
    let output = Command::new("sh")
        .args([
            "-c",
            &format!("trap '' XFSZ; ulimit -f 16; exec {program} train config.toml"),
        ])
        .current_dir(world.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("weights.safetensors"),
        "{}",
        stderr(&output)
    );
    assert!(
        world
            .run_folder()
            .join(format!("checkpoints/step-{saved:08}/manifest.json"))
            .exists()
    );
    let temporary = fs::read_dir(world.run_folder().join("checkpoints"))
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("tmp")
        })
        .count();
    assert_eq!(temporary, 0, "half a checkpoint was left behind");

    world.succeed(&["train", "config.toml"]);
    assert!(whole.trajectory() == world.trajectory());
    assert!(whole.student_weights() == world.student_weights());
    let failures = world
        .lines("events.jsonl")
        .iter()
        .filter(|event| event["kind"] == "save_failed")
        .count();
    assert!(failures > 0);
}

#[test]
fn a_second_process_is_kept_out_of_a_run() {
    let world = World::new();
    let started = world.start_until(&["train", "config.toml"], |line| is_step(line, 1));
    started.signal("STOP");
    let said = world.fail(1, &["train", "config.toml"]);
    assert!(
        said.contains("in use") && said.contains("process"),
        "{said}"
    );
    started.signal("CONT");
    assert!(started.wait().0.success());
}
