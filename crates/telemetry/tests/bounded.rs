//! Tests that a run without scrapes does not grow in memory. The recorder is global to the process, so there is only
//! one test function.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use ddk_telemetry::{Board, Keeper, Recorder, metrics};

/// Steps between two upkeeps: five seconds of a run that makes 200 steps per second.
const STEPS_OF_AN_UPKEEP: usize = 1000;

fn record_steps(count: usize, mut after_each: impl FnMut(usize)) {
    let phases = [
        "data",
        "teacher_wait",
        "teacher",
        "forward",
        "head",
        "backward",
        "optimizer",
    ];
    for step in 0..count {
        for phase in phases {
            metrics::STEP_SECONDS
                .with(&[phase])
                .record(step as f64 * 1e-6);
        }
        metrics::WHOLE_STEP_SECONDS.with(&[]).record(0.01);
        after_each(step);
    }
}

fn resident_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kibibytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    1024 * kibibytes
}

#[test]
fn memory_is_flat_over_100_000_steps_without_a_scrape() {
    let board = Board::new(Duration::from_secs(3600));
    let recorder = Recorder::install(board, "long", Path::new("/"), Vec::new()).unwrap();
    let keep = |step: usize| {
        if step.is_multiple_of(STEPS_OF_AN_UPKEEP) {
            recorder.upkeep();
        }
    };
    record_steps(20_000, keep);
    let before = resident_bytes();
    record_steps(100_000, keep);
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 2 << 20, "grown by {grown} bytes");

    // Without the upkeep, every recorded value stays in memory.
    record_steps(100_000, |_| ());
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown > 8 << 20, "grown by only {grown} bytes");

    // The keeper's thread does the upkeep and writes the file until it ends, and one last time at the end.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ddk.prom");
    let keeper = Keeper::start(
        recorder.clone(),
        Duration::from_millis(1),
        Some(file.clone()),
    )
    .unwrap();
    let reads = |value: u64| {
        let page = fs::read_to_string(&file).unwrap();
        assert!(page.ends_with('\n') && page.contains("ddk_build_info"));
        page.contains(&format!("ddk_step{{run=\"long\"}} {value}\n"))
    };
    metrics::STEP.with(&[]).set(7.0);
    let began = Instant::now();
    while !reads(7) {
        assert!(began.elapsed() < Duration::from_secs(60));
        std::thread::yield_now();
    }
    metrics::STEP.with(&[]).set(8.0);
    drop(keeper);
    assert!(reads(8));
    // The folder contains no other files.
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

    let nowhere = folder.path().join("nowhere/ddk.prom");
    let error = Keeper::start(recorder, Duration::from_secs(1), Some(nowhere.clone())).unwrap_err();
    assert!(
        error.to_string().contains(nowhere.to_str().unwrap()),
        "{error}"
    );
}
