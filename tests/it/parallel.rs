//! Several processes that share a run. Here, the test sets the environment that `torchrun` would set, so these tests
//! need no Python.

mod needs_torchrun;
mod processes;

use std::{fs, path::Path};

use self::processes::{Processes, SLOTS};
use crate::world::{World, assert_same, is_step, train_with};

/// The files of a folder and of its folders, with their bytes.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            files.push((name, fs::read(path).unwrap()));
        }
    }
    files.sort();
    files
}

/// A world with an undisturbed run of one process, with slots.
fn whole(more: &[&str]) -> World {
    let world = World::new();
    let output = train_with(&world, &[], &[SLOTS, more].concat());
    assert!(output.status.success());
    world
}

#[test]
fn any_number_of_processes_gives_the_same_files() {
    for more in [
        &["method=ddk"][..],
        &["method=kd", "student.activation_checkpointing=true"],
        &["method=ted", "objective.ted_steps=4"],
        &["method=ddk", "mixture.lag=1"],
        &["mixture.policy=odm"],
    ] {
        let whole = whole(more);
        for size in [2, 4] {
            let world = World::new();
            Processes::start(&world, size, more).succeed();
            let what = format!("{size} processes, {more:?}");
            assert_same(&world, &whole, &what);
            let student = |world: &World| files(&world.run_folder().join("student"));
            assert!(student(&world) == student(&whole), "{what}");
        }
    }
}

#[test]
fn any_number_of_processes_resumes_any_checkpoint() {
    // A stop may come several steps after its signal.
    let long = &["run.max_steps=100", "checkpoint.interval=7"];
    let (whole, world) = (whole(long), World::new());
    for size in [4, 2, 1] {
        let processes = Processes::start(&world, size, long);
        processes.wait_for(0, |line| line.starts_with("step "));
        processes.signal_all("TERM");
        let (codes, said) = processes.end();
        let is_stopped = codes.iter().all(|code| *code == Some(143));
        assert!(is_stopped, "{codes:?}: {}", said.join("\n"));
    }
    Processes::start(&world, 4, long).succeed();
    assert!(world.trajectory() == whole.trajectory());
    assert!(world.student_weights() == whole.student_weights());
}

#[test]
fn a_stop_of_one_process_stops_all_at_the_same_step() {
    let whole = whole(&[]);
    let world = World::new();
    let processes = Processes::start(&world, 2, &[]);
    processes.wait_for(0, |line| is_step(line, 5));
    processes.signal(1, "TERM");
    let (codes, said) = processes.end();
    let is_stopped = codes.iter().all(|code| *code == Some(143));
    assert!(is_stopped, "{codes:?}: {}", said.join("\n"));
    Processes::start(&world, 2, &[]).succeed();
    assert_same(&world, &whole, "after SIGTERM to rank 1");
}

#[test]
fn an_edited_learning_rate_applies_to_all_processes() {
    let (one, two) = (World::new(), World::new());
    let first = &["lr_scheduler.total_steps=12", "run.max_steps=6"];
    let then = &["lr_scheduler.total_steps=12", "optimizer.lr=1e-3"];
    for more in [first, then] {
        let output = train_with(&one, &[], &[SLOTS, more].concat());
        assert!(output.status.success());
        Processes::start(&two, 2, more).succeed();
    }
    assert!(two.trajectory() == one.trajectory());
    assert!(two.student_weights() == one.student_weights());
}

#[test]
fn a_process_with_other_settings_is_refused() {
    for set in ["optimizer.lr=2e-3", "run.seed=7"] {
        let world = World::new();
        let processes = Processes::start_each(&world, 2, |rank| vec![set; rank]);
        let (codes, said) = processes.end();
        assert_eq!(codes, [Some(2), Some(2)], "{}", said.join("\n"));
        for said in said {
            let expected = "rank 1 and rank 0 differ in the configuration (hash ";
            assert!(said.contains(expected), "{said}");
        }
    }
}

#[test]
fn a_number_of_processes_that_does_not_divide_the_slots_is_refused() {
    let world = World::new();
    let processes = Processes::start(&world, 2, &["parallel.slots=1"]);
    let (codes, said) = processes.end();
    assert_eq!(codes, [Some(2), Some(2)]);
    for said in said {
        assert!(said.contains("2 processes cannot share 1 slots"), "{said}");
    }
}
