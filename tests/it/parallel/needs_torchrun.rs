//! Runs under the real `torchrun`, which restarts their processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;

use super::{SLOTS, assert_equal, whole};
use crate::world::{Started, World, assert_same, is_step, scale, stderr};

/// `torchrun`, from the environment of `tools/python-env`.
fn torchrun() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = folder("DDK_CACHE").unwrap_or_else(|| {
        let home = || folder("HOME").unwrap().join(".cache");
        folder("XDG_CACHE_HOME").unwrap_or_else(home).join("ddk")
    });
    let program = cache.join("python/bin/torchrun");
    assert!(
        program.exists(),
        "{} is missing: run tools/python-env",
        program.display()
    );
    program
}

/// A training run on `size` processes, restarted up to ten times.
fn train(world: &World, size: usize, more: &[&str]) -> Command {
    let ddk = world.command(&[]);
    let mut command = Command::new(torchrun());
    command
        .args(["--no-python", "--standalone", "--max-restarts", "10"])
        .args(["--nproc-per-node", &size.to_string()])
        .arg(ddk.get_program())
        .args(["train", "config.toml"])
        .args(SLOTS.iter().chain(more).flat_map(|set| ["--set", set]))
        .current_dir(world.path())
        .stdout(Stdio::null());
    command
}

/// The processes of the run in this folder, by rank.
fn ranks(world: &World) -> Vec<(usize, String)> {
    let folder = world.path().canonicalize().unwrap();
    let rank = |process: &Path| {
        if fs::read_link(process.join("cwd")).ok()? != folder {
            return None;
        }
        let environment = fs::read(process.join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let rank = variables.find_map(|variable| variable.strip_prefix(b"RANK="))?;
        let id = process.file_name()?.to_str()?.to_owned();
        Some((String::from_utf8_lossy(rank).parse().ok()?, id))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut ranks: Vec<_> = processes.filter_map(|entry| rank(&entry.path())).collect();
    ranks.sort();
    ranks
}

fn signal(name: &str, process: &str) {
    // It may have ended.
    let _ = Command::new("kill")
        .args([&format!("-{name}"), process])
        .status();
}

#[test]
fn any_number_of_processes_gives_the_same_files() {
    for more in [
        &["method=ddk"][..],
        &["method=ddk", "student.activation_checkpointing=true"],
        &["method=kd"],
        &["method=ted", "objective.ted_steps=4"],
    ] {
        let whole = whole(more);
        for size in [2, 4] {
            let world = World::new();
            let output = train(&world, size, more).output().unwrap();
            assert!(output.status.success(), "{}", stderr(&output));
            assert_equal(&world, &whole, &format!("{size} processes, {more:?}"));
        }
    }
}

#[test]
fn a_signal_to_torchrun_and_a_command_end_the_run_and_save_it() {
    let long = &["run.max_steps=400"];
    let whole = whole(long);
    let world = World::new();
    let started = Started::of(train(&world, 2, long), |line| is_step(line, 2));
    started.signal("TERM");
    let (status, said) = started.wait();
    assert!(
        !status.success() && said.contains("stopped after step"),
        "{said}"
    );
    let started = Started::of(train(&world, 2, long), |line| line.starts_with("step "));
    world.succeed(&["ctl", "runs/small", "stop"]);
    let (status, said) = started.wait();
    // Any other code would make torchrun start the processes again.
    assert!(
        status.success() && said.contains("stopped after step"),
        "{said}"
    );
    let output = train(&world, 2, long).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(world.trajectory() == whole.trajectory());
    assert!(world.student_weights() == whole.student_weights());
}

/// Whether a line reports a step or an evaluation, which all come after the run has started.
fn is_of_run(line: &str) -> bool {
    line.starts_with("step ") || line.contains("evaluation of the")
}

#[test]
fn a_run_whose_processes_are_killed_equals_one_that_never_was() {
    let whole = whole(&[]);
    for kill in 0..scale().clamp(2, 10) {
        let world = World::new();
        // At any line: in an evaluation, after a step, or while a checkpoint is written.
        let (rank, line) = ((kill % 2) as usize, 2 + (kill * 7919 + 11) % 20);
        let mut lines = 0;
        let started = Started::of(train(&world, 2, &[]), |said| {
            lines += u64::from(is_of_run(said));
            lines == line
        });
        let killed = ranks(&world).into_iter().find(|(of, _)| *of == rank);
        signal("KILL", &killed.unwrap().1);
        let (status, said) = started.wait();
        assert!(status.success(), "kill {kill}: {said}");
        assert_same(
            &world,
            &whole,
            &format!("rank {rank} killed at line {line}"),
        );
        let events = fs::read_to_string(world.run_folder().join("events.jsonl")).unwrap();
        let kinds = events
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let starts =
            kinds.filter(|event| ["started", "resumed"].contains(&event["kind"].as_str().unwrap()));
        assert_eq!(starts.count(), 2, "{events}");
    }
}

#[test]
fn a_process_that_stands_still_is_reported_and_replaced() {
    let whole = whole(&[]);
    let world = World::new();
    let command = train(&world, 2, &["parallel.timeout_seconds=2"]);
    let started = Started::of(command, |line| is_step(line, 5));
    let stopped = ranks(&world).into_iter().find(|(rank, _)| *rank == 1);
    signal("STOP", &stopped.unwrap().1);
    let (status, said) = started.wait();
    assert!(status.success(), "{said}");
    assert!(said.contains("2 s"), "{said}");
    assert_same(&world, &whole, "rank 1 stopped");
}
