//! Prepares in child processes: with any number of threads, killed, and several at a time.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod common;

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use common::{Place, data_files, sentence};
use ddk_corpus::{PreparePhase, prepare, stale};

/// The tests below run this as a child. It prepares the folder from the environment and prints one line per batch.
#[test]
fn child_that_prepares() {
    let Ok(folder) = std::env::var("DDK_TEST_CHILD") else {
        return;
    };
    let place = Place::at(Path::new(&folder));
    let options = place.options(vec![place.source("records", "records.jsonl")]);
    prepare(&options, &place.tokenizer(), false, &mut |progress| {
        if progress.phase == PreparePhase::Tokenizing {
            println!("batch {}", progress.bytes);
        }
    })
    .unwrap();
    println!("done");
}

fn child(place: &Place, threads: usize) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child_that_prepares", "--nocapture"])
        .env("DDK_TEST_CHILD", place.path(""))
        .env("RAYON_NUM_THREADS", threads.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

fn many_records(place: &Place) {
    let records: String = (0..2000)
        .map(|number| format!("{}\n", serde_json::json!({ "text": sentence(number) })))
        .collect();
    place.write("records.jsonl", records.as_bytes());
}

#[test]
fn any_number_of_threads_writes_the_same_bytes() {
    let mut all = Vec::new();
    for threads in 1..=4 {
        let place = Place::new();
        many_records(&place);
        assert!(child(&place, threads).output().unwrap().status.success());
        all.push(data_files(&place.path("prepared/records")));
    }
    assert!(all.iter().all(|files| *files == all[0]));
}

#[test]
fn a_preparation_that_was_killed_goes_on_to_the_same_bytes() {
    let scale: usize = std::env::var("DDK_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let whole = Place::new();
    many_records(&whole);
    assert!(child(&whole, 2).output().unwrap().status.success());
    let expected = data_files(&whole.path("prepared/records"));
    // Ten points at full scale, spread over the batches; some runs are killed twice.
    for point in 0..scale.min(10) + 1 {
        let place = Place::new();
        many_records(&place);
        let mut went_on = false;
        for kill_after in [1 + 9 * point, 3] {
            let mut child = child(&place, 2).spawn().unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let mut batches = 0;
            for line in lines {
                batches += usize::from(line.unwrap().starts_with("batch"));
                if batches == kill_after {
                    child.kill().unwrap();
                    break;
                }
            }
            child.wait().unwrap();
            went_on |= place.path("prepared/.records.tmp/progress.json").exists();
        }
        assert!(went_on, "killed before anything was saved");
        assert!(child(&place, 2).output().unwrap().status.success());
        assert!(
            data_files(&place.path("prepared/records")) == expected,
            "point {point}"
        );
        // DDK notices a source that changes afterwards.
        place.write(
            "records.jsonl",
            format!("{}\n", serde_json::json!({ "text": "new" })).as_bytes(),
        );
        let options = place.options(vec![place.source("records", "records.jsonl")]);
        let stale = stale(&options, &place.tokenizer()).unwrap();
        assert!(
            stale[0].reason.ends_with("records.jsonl has changed"),
            "{stale:?}"
        );
    }
}

#[test]
fn two_processes_that_prepare_the_same_wait_for_each_other() {
    let (alone, both) = (Place::new(), Place::new());
    for place in [&alone, &both] {
        many_records(place);
    }
    assert!(child(&alone, 1).output().unwrap().status.success());
    let children: Vec<_> = (0..3).map(|_| child(&both, 1).spawn().unwrap()).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let files = |place: &Place| data_files(&place.path("prepared/records"));
    assert_eq!(files(&alone), files(&both));
}
