//! `ddk ctl`: commands to a run, over its socket and over HTTP.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    process::Output,
};

use serde_json::Value;

use crate::world::{STEPS, Started, World, assert_same, is_step, stderr, whole};

const TOKEN: &str = "a-token-of-this-test";

/// A run too long to end on its own.
const LONG: [&str; 4] = ["train", "config.toml", "--set", "run.max_steps=100000"];

fn ctl(world: &World, run: &str, command: &[&str]) -> Output {
    let arguments = [&["ctl", run, "--json"], command].concat();
    let mut ctl = world.command(&arguments);
    ctl.env("DDK__TELEMETRY__TOKEN", TOKEN).output().unwrap()
}

/// Sends a command that must succeed; returns the reply.
fn done(world: &World, run: &str, command: &[&str]) -> Value {
    let output = ctl(world, run, command);
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["reply"].clone()
}

/// Sends a command that must be refused; returns the reason.
fn refused(world: &World, run: &str, command: &[&str]) -> String {
    let output = ctl(world, run, command);
    assert_eq!(
        output.status.code(),
        Some(1),
        "{command:?}: {}",
        stderr(&output)
    );
    stderr(&output)
}

/// Starts a long run with a live page; returns it and its address.
fn start(world: &World) -> (Started, String) {
    let mut command = world.command(&LONG);
    command.args([
        "--set",
        "telemetry.enabled=true",
        "--set",
        "telemetry.listen=127.0.0.1:0",
    ]);
    command.env("DDK__TELEMETRY__TOKEN", TOKEN);
    let mut address = None;
    let started = Started::of(command, |line| {
        if let Some(rest) = line.strip_prefix("live page: ") {
            address = rest.split('/').nth(2).map(str::to_owned);
        }
        is_step(line, 3)
    });
    (started, format!("http://{}", address.unwrap()))
}

#[test]
fn a_run_that_trains_and_one_that_is_paused_do_what_they_are_told() {
    for over_http in [false, true] {
        let world = World::new();
        let (started, url) = start(&world);
        let run = if over_http {
            url.as_str()
        } else {
            "runs/small"
        };
        let ask = |command: &[&str]| done(&world, run, command);
        assert_eq!(ask(&["status"])["state"], "running");
        assert!(ask(&["checkpoint"])["bytes"].as_u64().unwrap() > 0);
        let measured = ask(&["evaluate"]);
        assert_eq!(measured["student_perplexity"].as_object().unwrap().len(), 3);
        assert!(measured["teacher_perplexity"]["coins"].as_f64().unwrap() > 1.0);
        assert!(refused(&world, run, &["resume"]).contains("not paused"));

        let step = ask(&["pause"])["step"].as_u64().unwrap();
        assert!(refused(&world, run, &["pause"]).contains("already paused"));
        let status = ask(&["status"]);
        assert_eq!(
            (&status["state"], status["step"].as_u64()),
            (&"paused".into(), Some(step))
        );
        assert_eq!(ask(&["checkpoint"])["step"], step);
        assert_eq!(ask(&["evaluate"])["step"], step);
        assert_eq!(
            ask(&["set", "optimizer.lr=1e-4", "log.interval_seconds=5"])["step"],
            step + 1
        );
        assert!(refused(&world, run, &["set", "optimizer.lr=-1"]).contains("`optimizer.lr` is -1"));
        assert!(refused(&world, run, &["set", "optimizer.beta1=0.5"]).contains("these can: "));
        assert!(refused(&world, run, &["set", "student.rate=1"]).contains("unknown field `rate`"));
        assert_eq!(ask(&["status"])["step"], step);
        assert_eq!(ask(&["resume"])["step"], step);

        assert_eq!(ask(&["stop"])["command"], "stop");
        let (status, said) = started.wait();
        assert_eq!(status.code(), Some(143), "{said}");
        assert!(said.contains("stopped after step "), "{said}");
        let kinds: Vec<Value> = world
            .lines("events.jsonl")
            .iter()
            .map(|line| line["kind"].clone())
            .collect();
        for kind in [
            "paused",
            "unpaused",
            "evaluated",
            "changed",
            "saved",
            "stopped",
        ] {
            assert!(kinds.contains(&kind.into()), "{kind}: {kinds:?}");
        }
        let changed = world.lines("overrides.jsonl");
        assert_eq!(
            changed[0]["source"],
            if over_http { "http" } else { "socket" }
        );
        assert_eq!(
            changed[0]["set"],
            serde_json::json!({"optimizer.lr": 1e-4, "log.interval_seconds": 5})
        );
    }
}

#[test]
fn a_run_that_nobody_works_on_has_a_status_alone() {
    let world = whole();
    assert_eq!(done(&world, "runs/small", &["status"])["state"], "finished");
    assert!(!world.run_folder().join("control.sock").exists());
    for command in [
        &["pause"][..],
        &["checkpoint"],
        &["set", "optimizer.lr=1"],
        &["stop"],
    ] {
        let said = refused(&world, "runs/small", command);
        assert!(
            said.contains("no process is training the run in runs/small: it is finished"),
            "{said}"
        );
        assert!(said.contains("hint: "), "{said}");
    }
    let said = world.fail(2, &["ctl", "runs/none", "status"]);
    assert!(said.contains("there is no run in runs/none"), "{said}");
    let said = world.fail(2, &["ctl", "runs/small", "set", "optimizer.lr"]);
    assert!(said.contains("optimizer.lr is not KEY=VALUE"), "{said}");

    // A socket that a killed process left behind.
    drop(UnixListener::bind(world.run_folder().join("control.sock")).unwrap());
    assert!(refused(&world, "runs/small", &["pause"]).contains("no process is training the run"));
}

#[test]
fn the_socket_is_the_users_alone_and_works_in_a_deep_folder() {
    let world = World::new();
    let deep = format!("{}/{}", "d".repeat(90), "e".repeat(90));
    let folder = format!("run.output_dir={deep}");
    let train = [&LONG[..], &["--set", &folder]].concat();
    let started = world.start_until(&train, |line| is_step(line, 3));
    let run = format!("{deep}/small");
    let socket = world.path().join(&run).join("control.sock");
    let mode = fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(done(&world, &run, &["status"])["state"], "running");
    started.signal("KILL");
    started.wait();
    assert!(refused(&world, &run, &["stop"]).contains("it is stopped"));
    // The next process replaces the socket that the killed one left behind.
    let started = world.start_until(&train, |line| line.starts_with("step "));
    done(&world, &run, &["stop"]);
    assert_eq!(started.wait().0.code(), Some(143));
    assert!(!socket.exists());
}

/// A run whose steps take long enough for commands to arrive.
fn slow(world: &World) -> Started {
    let stalls: Vec<String> = (2..8)
        .map(|step| format!("\"stall student {step}\""))
        .collect();
    let plan = format!("fault_injection.plan=[{}]", stalls.join(", "));
    let arguments = ["train", "config.toml", "--set", &plan];
    world.start_until_with(&arguments, &[("DDK_ALLOW_FAULTS", "1")], |line| {
        is_step(line, 1)
    })
}

/// A run with settings changed midway equals the same run killed with SIGKILL and resumed, without sending the
/// change again.
#[test]
fn a_change_outlives_a_kill_and_is_made_at_the_same_step() {
    let changed = World::new();
    let started = slow(&changed);
    // The run may pause at any step; the file records which one.
    let reply = done(&changed, "runs/small", &["pause"]);
    let step = reply["step"].as_u64().unwrap();
    done(
        &changed,
        "runs/small",
        &["set", "optimizer.lr=2e-3", "lr_scheduler.min_lr=1e-3"],
    );
    done(&changed, "runs/small", &["resume"]);
    assert!(started.wait().0.success());
    let rates = changed.lines("run.jsonl");
    assert_eq!(rates.len() as u64, STEPS);
    let overrides = fs::read(changed.run_folder().join("overrides.jsonl")).unwrap();
    let undisturbed = whole();
    let rate = |world: &World, step: u64| {
        world.lines("run.jsonl")[step as usize - 1]["learning_rate"].clone()
    };
    if step > 0 {
        assert_eq!(rate(&changed, step), rate(&undisturbed, step));
    }
    if step < STEPS {
        assert_ne!(rate(&changed, step + 1), rate(&undisturbed, step + 1));
    }

    // Replay the same change in runs killed before and after it, and around checkpoints.
    for killed in [1, step.max(1), step + 1, 6, 11] {
        let world = World::new();
        let plan = format!("fault_injection.plan=[\"kill student {killed}\"]");
        let mut command = world.command(&["train", "config.toml", "--set", &plan]);
        command.env("DDK_ALLOW_FAULTS", "1");
        fs::create_dir_all(world.run_folder()).unwrap();
        fs::write(world.run_folder().join("lock"), "").unwrap();
        fs::write(world.run_folder().join("overrides.jsonl"), &overrides).unwrap();
        assert!(command.output().unwrap().status.code().is_none());
        world.succeed(&["train", "config.toml"]);
        assert_same(&world, &changed, &format!("killed in step {killed}"));
        assert_eq!(
            fs::read(world.run_folder().join("overrides.jsonl")).unwrap(),
            overrides
        );
    }
}

/// Pauses, checkpoints, and evaluations do not change what the student learns.
#[test]
fn what_does_not_change_settings_leaves_every_bit() {
    let world = World::new();
    let started = slow(&world);
    let ask = |command: &str| ctl(&world, "runs/small", &[command]);
    for command in ["pause", "evaluate", "checkpoint", "resume"] {
        assert!(ask(command).status.success(), "{command}");
    }
    assert!(started.wait().0.success());
    assert_same(&world, &whole(), "paused");
}

/// A live setting edited between two starts applies from the next step on, and again after a kill.
#[test]
fn an_edited_configuration_is_a_change_at_the_step_that_follows() {
    let train = ["train", "config.toml", "--set"];
    let begin = |world: &World| {
        let plan = [
            &train[..],
            &["fault_injection.plan=[\"hang evaluation 2\"]"],
        ]
        .concat();
        let held = |line: &str| line == "fault on purpose: hang evaluation 2";
        let started = world.start_until_with(&plan, &[("DDK_ALLOW_FAULTS", "1")], held);
        started.signal("TERM");
        let (_, said) = started.wait();
        assert!(said.contains("stopped after step 4, saved"), "{said}");
    };
    let edit = [&train[..], &["optimizer.lr=1e-3"]].concat();
    let edited = World::new();
    begin(&edited);
    let refused = edited.fail(2, &["train", "config.toml", "--set", "run.max_steps=6"]);
    let hint = "can only be raised; to end this run earlier, resume it with its own limit";
    assert!(refused.contains(hint), "{refused}");
    let refused = edited.fail(2, &["watch", "small"]);
    assert!(refused.contains("did you mean runs/small?"), "{refused}");
    edited.succeed(&edit);
    let lines = edited.lines("overrides.jsonl");
    assert_eq!(
        (lines.len(), &lines[0]["source"], &lines[0]["step"]),
        (1, &"config".into(), &5.into())
    );
    // The unchanged file no longer has the run's settings. The hint has, for the file of the run as for the user's.
    let refused = edited.fail(2, &["train", "config.toml"]);
    let hint = "to print its result, use the settings in runs/small/config.toml with --set optimizer.lr=0.001;";
    assert!(refused.contains(hint), "{refused}");
    for file in ["runs/small/config.toml", "config.toml"] {
        let said = stderr(&edited.succeed(&["train", file, "--set", "optimizer.lr=0.001"]));
        assert!(said.contains("is already finished"), "{said}");
    }
    edited.succeed(&["report", "runs/small", "--format", "md"]);
    let report = fs::read_to_string(edited.run_folder().join("report.md")).unwrap();
    let rate = "- learning rate: 1e-3";
    let rate = report.lines().find(|line| line.starts_with(rate)).unwrap();
    assert!(rate.ends_with("(changed during the run)"), "{rate}");
    let again = report.split("## Reproduce this run").nth(1).unwrap();
    assert!(
        again.contains("| 5 | `optimizer.lr` | `0.001` |"),
        "{again}"
    );

    let killed = World::new();
    begin(&killed);
    let kill = [
        &edit[..],
        &["--set", "fault_injection.plan=[\"kill student 9\"]"],
    ]
    .concat();
    let mut command = killed.command(&kill);
    let output = command.env("DDK_ALLOW_FAULTS", "1").output().unwrap();
    assert!(output.status.code().is_none());
    // Remove the later checkpoint, if one was written, so that the run must apply the change again.
    let _ = fs::remove_dir_all(killed.run_folder().join("checkpoints/step-00000006"));
    killed.succeed(&edit);
    assert_same(&killed, &edited, "killed after an edit");
    assert_eq!(killed.lines("overrides.jsonl"), lines);
}
