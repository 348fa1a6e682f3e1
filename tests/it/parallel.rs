//! Several processes that share a run. Here, the test sets the environment that `torchrun` would set, so these tests
//! need no Python.

mod needs_torchrun;
mod processes;

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
};

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

/// Asserts that two runs have the same records and, byte for byte, the same files of the student.
fn assert_equal(world: &World, whole: &World, what: &str) {
    assert_same(world, whole, what);
    let student = |world: &World| files(&world.run_folder().join("student"));
    assert!(student(world) == student(whole), "{what}");
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
            assert_equal(&world, &whole, &format!("{size} processes, {more:?}"));
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

/// The answer to a GET request.
fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The first of two neighboring ports that are free.
fn two_ports() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let port = port.unwrap().port();
        if port < u16::MAX && TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

#[test]
fn each_process_answers_for_its_health_and_rank_0_shows_all() {
    let world = World::new();
    let port = two_ports();
    let listen = format!("telemetry.listen=127.0.0.1:{port}");
    let more = ["run.max_steps=4000", "telemetry.enabled=true", &listen];
    let processes = Processes::start(&world, 2, &more);
    processes.wait_for(0, |line| is_step(line, 3));
    for port in [port, port + 1] {
        let answer = get(port, "/livez");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(get(port + 1, "/api/status").starts_with("HTTP/1.1 404"));
    let status = get(port, "/api/status");
    assert!(
        status.contains(r#""ranks":[{"rank":0"#) && status.contains(r#"{"rank":1"#),
        "{status}"
    );
    let metrics = get(port, "/metrics");
    for part in ["busy", "waiting", "exchange"] {
        let labels = [r#"rank="1""#.to_owned(), format!("part=\"{part}\"")];
        let is_it = |line: &str| {
            let mut labels = labels.iter();
            line.starts_with("ddk_rank_seconds{") && labels.all(|label| line.contains(label))
        };
        let is_shown = metrics.lines().any(is_it);
        assert!(is_shown, "{part}: {metrics}");
    }
    processes.signal_all("TERM");
    let (codes, said) = processes.end();
    assert_eq!(codes, [Some(143), Some(143)], "{}", said.join("\n"));
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
