//! Runs that are killed, stopped, or unable to save resume as if nothing had happened.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::world::{World, is_step, scale, stderr, train_with};

/// Steps at which a run is killed: a tenth of the full count at scale 1.
fn kill_steps() -> Vec<u64> {
    // Before the first checkpoint, just after one, at the end of an interval, in a later interval.
    let all = [1, 8, 10, 7, 4, 2, 5, 6, 9, 3, 11];
    all[..(3 * scale() as usize).min(all.len())].to_vec()
}

/// Sends a signal to a run once it reports `step`. Returns its world, exit status, and standard error.
///
/// On a busy machine, a run may end before the signal reaches it; then the test tries another run.
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

/// The step of the newest complete checkpoint, found without DDK's own reader. Asserts that the run recorded no
/// newer one.
fn newest_checkpoint(world: &World) -> Option<usize> {
    let folder = world.run_folder().join("checkpoints");
    let names = fs::read_dir(folder).into_iter().flatten();
    // Other names are hidden: a kill may leave half a manifest there.
    let step = |path: &Path| {
        path.file_name()?
            .to_str()?
            .strip_prefix("step-")?
            .parse()
            .ok()
    };
    let named = names.filter_map(|entry| {
        let path = entry.unwrap().path();
        Some((step(&path)?, path))
    });
    let complete = named.filter(|(_, path)| is_complete(path));
    let newest = complete.map(|(step, _)| step).max();
    let events = fs::read_to_string(world.run_folder().join("events.jsonl")).unwrap_or_default();
    let recorded = events
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["kind"] == "saved")
        .filter_map(|event| event["step"].as_u64())
        .max();
    assert!(
        newest.map(|step| step as u64) >= recorded,
        "{newest:?} of {recorded:?}"
    );
    newest
}

/// Whether each file in the folder's manifest has the recorded size and hash.
fn is_complete(folder: &Path) -> bool {
    let Ok(manifest) = fs::read(folder.join("manifest.json")) else {
        return false;
    };
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let files = manifest["files"].as_object().unwrap();
    assert!(files.contains_key("weights.safetensors") && files.contains_key("state.json"));
    files.iter().all(|(name, entry)| {
        let bytes = fs::read(folder.join(name)).unwrap();
        let hash = blake3::hash(&bytes).to_hex();
        entry["bytes"] == bytes.len() && entry["blake3"] == hash.as_str()
    })
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
        // Saves run alongside training, so the newest checkpoint may be older than the last multiple of
        // `checkpoint.interval`.
        let saved = newest_checkpoint(&world);
        let output = world.succeed(&["train", "config.toml"]);
        let went_on = saved.map(|saved| format!("resuming from step {saved} "));
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

    // A file size limit stands in for a full disk. The shell ignores the signal for exceeding it, so writes fail
    // with an error.
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

#[test]
fn runs_killed_at_any_instant_twice_in_a_row_go_on_bit_for_bit() {
    let whole = World::new();
    let began = Instant::now();
    whole.succeed(&["train", "config.toml"]);
    let length = began.elapsed();
    // Kills are spread over the whole run, including its start and end; 25 at full scale.
    let count = (3 * scale()).min(25);
    for index in 0..count {
        let world = World::new();
        for share in [index as f64 / count as f64, 0.3] {
            let mut child = world
                .command(&["train", "config.toml"])
                .stderr(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            // The time of the kill is what the test varies, so it sleeps instead of waiting for an event.
            std::thread::sleep(length.mul_f64(share));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        world.succeed(&["train", "config.toml"]);
        assert!(
            whole.trajectory() == world.trajectory(),
            "instant {index} of {count}"
        );
        assert!(
            whole.student_weights() == world.student_weights(),
            "instant {index} of {count}"
        );
    }
}

#[test]
fn runs_killed_where_it_hurts_go_on_bit_for_bit() {
    // A domain so small that a run goes through it for several epochs.
    let small = [
        "--set",
        "domains.coins.max_tokens=700",
        "--set",
        "mixture.initial=equal",
    ];
    let train = |world: &World, faults: &str| {
        let plan = format!("fault_injection.plan=[{faults}]");
        let arguments = [&["train", "config.toml", "--set", &plan][..], &small].concat();
        let mut command = world.command(&arguments);
        command.env("DDK_ALLOW_FAULTS", "1").output().unwrap()
    };
    let whole = World::new();
    let output = train(&whole, "");
    assert!(output.status.success(), "{}", stderr(&output));
    let passes = |interval: usize| {
        let lines = whole.lines("mixture.jsonl");
        let drawn: Vec<_> = lines
            .iter()
            .filter(|line| line["drawn"].is_object())
            .collect();
        drawn[interval]["drawn"]["coins"]["epochs"]
            .as_f64()
            .unwrap()
    };
    assert!(passes(2) > 1.0, "{} passes", passes(2));
    for kills in [
        // In a step of a second epoch; in an evaluation; in a save; just after an update of the mixture.
        &["\"kill student 11\""][..],
        &["\"kill evaluation 2\""],
        &["\"kill save 6 9\""],
        &["\"kill batcher 5\""],
        // In the very first step and again in the first step after resuming; while a teacher computes.
        &["\"kill student 1\"", "\"kill student 1\""],
        &["\"kill teacher 9\"", "\"kill evaluation 1\""],
    ] {
        let world = World::new();
        for kill in kills {
            assert!(!train(&world, kill).status.success(), "{kills:?}");
        }
        assert!(train(&world, "").status.success(), "{kills:?}");
        assert!(whole.trajectory() == world.trajectory(), "{kills:?}");
        assert!(
            whole.student_weights() == world.student_weights(),
            "{kills:?}"
        );
    }
}

#[test]
fn sigterm_is_heard_in_every_phase_within_its_grace() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    // A stall holds the run in one phase: a step, a teacher's forward pass, an evaluation, or a save.
    for stall in [
        "stall student 5",
        "stall teacher 6",
        "stall evaluation 2",
        "stall save 3 4",
    ] {
        let world = World::new();
        let started = stalled(&world, stall, &[]);
        let told = Instant::now();
        started.signal("TERM");
        let (status, said) = started.wait();
        assert_eq!(status.code(), Some(143), "{stall}: {said}");
        assert!(told.elapsed() < Duration::from_secs(10), "{stall}");
        let steps = world.lines("run.jsonl").len();
        assert_eq!(newest_checkpoint(&world), Some(steps), "{stall}");
        world.succeed(&["train", "config.toml"]);
        assert!(whole.trajectory() == world.trajectory(), "{stall}");
    }
}

/// Starts a run and waits until it stalls.
fn stalled(world: &World, stall: &str, more: &[&str]) -> crate::world::Started {
    let plan = format!("fault_injection.plan=[\"{stall}\"]");
    let train = [&["train", "config.toml", "--set", &plan][..], more].concat();
    let struck = format!("fault on purpose: {stall}");
    world.start_until_with(&train, &[("DDK_ALLOW_FAULTS", "1")], |line| line == struck)
}

#[test]
fn a_grace_that_is_over_ends_the_run_at_once() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    let world = World::new();
    let started = stalled(
        &world,
        "stall student 5",
        &["--set", "recovery.shutdown_grace_seconds=0.05"],
    );
    started.signal("TERM");
    let (status, said) = started.wait();
    assert_eq!(status.code(), Some(143), "{said}");
    assert!(said.contains("recovery.shutdown_grace_seconds"), "{said}");
    // On a busy disk, the background save of step 3 may not be complete yet. No later step may be saved.
    let saved = newest_checkpoint(&world);
    assert!(saved.is_none_or(|step| step == 3), "{saved:?}: {said}");
    world.succeed(&["train", "config.toml"]);
    assert!(whole.trajectory() == world.trajectory());
}

#[test]
fn a_worker_that_computes_past_its_limit_is_sick_until_it_is_done() {
    let world = World::new();
    let mut address = None;
    let plan = "fault_injection.plan=[\"stall student 5\"]";
    let train = [
        "train",
        "config.toml",
        "--set",
        plan,
        "--set",
        "recovery.watchdog_seconds=0.05",
        "--set",
        "telemetry.enabled=true",
        "--set",
        "telemetry.listen=127.0.0.1:0",
        "--set",
        "run.max_steps=4000",
    ];
    let started = world.start_until_with(&train, &[("DDK_ALLOW_FAULTS", "1")], |line| {
        if let Some((_, rest)) = line.split_once("metrics: http://") {
            address = rest.strip_suffix("/metrics").map(str::to_owned);
        }
        line.contains("fault on purpose")
    });
    let address = address.unwrap();
    let health = || {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(
            stream,
            "GET /livez HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    // The stall lasts longer than the limit, so both responses must come.
    let answers = |what: &str| {
        let began = Instant::now();
        let in_time = |_: &String| began.elapsed() < Duration::from_secs(60);
        let mut answers = std::iter::repeat_with(health).take_while(in_time);
        answers.any(|answer| answer.contains(what))
    };
    assert!(answers("student has computed for"), "never sick");
    assert!(answers(" 200 "), "never well again");
    started.signal("TERM");
    assert_eq!(started.wait().0.code(), Some(143));
}

#[test]
fn a_second_signal_ends_at_once_and_harms_nothing() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    let world = World::new();
    let mut child = world
        .command(&[
            "train",
            "config.toml",
            "--set",
            "fault_injection.plan=[\"stall student 6\"]",
        ])
        .env("DDK_ALLOW_FAULTS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(lines.any(|line| is_step(&line, 5)));
    let id = child.id().to_string();
    let kill = || assert!(Command::new("kill").arg(&id).status().unwrap().success());
    kill();
    assert!(lines.any(|line| line.contains("a second signal ends the process at once")));
    kill();
    for _ in lines {}
    assert_eq!(child.wait().unwrap().code(), Some(143));
    world.succeed(&["train", "config.toml"]);
    assert!(whole.trajectory() == world.trajectory());
    assert!(whole.student_weights() == world.student_weights());
}

#[test]
fn a_terminal_that_goes_away_ends_nothing() {
    let whole = World::new();
    whole.succeed(&["train", "config.toml"]);
    let world = World::new();
    let mut child = world
        .command(&["train", "config.toml"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| is_step(&line.unwrap(), 2)));
    drop(lines);
    assert!(child.wait().unwrap().success());
    assert!(whole.trajectory() == world.trajectory());
    assert!(whole.student_weights() == world.student_weights());
}

/// The save at the end of an interval fails, and then the run ends there. It must still leave a checkpoint of its
/// last step.
#[test]
fn a_save_that_failed_is_made_again_before_the_run_ends() {
    let set = ["run.target_gap=1000", "checkpoint.interval=4"];
    let whole = World::new();
    assert!(train_with(&whole, &[], &set).status.success());
    let world = World::new();
    let output = train_with(&world, &["enospc save 4 2"], &set);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("save_failed"),
        "{}",
        stderr(&output)
    );
    assert_eq!(newest_checkpoint(&world), Some(4));
    assert!(whole.trajectory() == world.trajectory());
    assert!(whole.student_weights() == world.student_weights());
}

/// A signal arrives, then the attempt that received it fails. DDK must not start another attempt.
#[test]
fn a_signal_is_not_forgotten_when_a_run_heals() {
    let world = World::new();
    let train = [
        "train",
        "config.toml",
        "--set",
        "fault_injection.plan=[\"stall student 5\", \"panic student 5\"]",
    ];
    let environment = [("DDK_ALLOW_FAULTS", "1")];
    let started = world.start_until_with(&train, &environment, |line| {
        line == "fault on purpose: stall student 5"
    });
    started.signal("INT");
    let (status, said) = started.wait();
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("the student panicked"), "{said}");
    assert!(said.contains("stopped after step 3"), "{said}");
}
