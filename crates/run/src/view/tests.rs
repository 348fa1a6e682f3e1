use std::{collections::BTreeMap, fs};

use super::*;
use crate::{
    Journal, Lengths, StepPhase,
    records::{ByDomain, Drawn, DrawnLine, MixtureLine},
};

fn by_domain(coins: f64, rivers: f64) -> ByDomain {
    BTreeMap::from([("coins".to_owned(), coins), ("rivers".to_owned(), rivers)])
}

fn step(step: u64, ce_loss: f64) -> StepRecord {
    StepRecord {
        step,
        loss: ce_loss + 0.2,
        ce_loss,
        kd_loss: 1.0,
        gamma: 0.2,
        learning_rate: 1e-3,
        grad_norm: 2.0,
        tokens: 100,
        seconds: PhaseSeconds::from([(StepPhase::Forward, 0.5), (StepPhase::Head, 1.5)]),
        ..StepRecord::default()
    }
}

fn mixture(interval: u64, ratio: ByDomain) -> MixtureLine {
    MixtureLine {
        interval,
        step: 4 * interval,
        policy: "ddk".to_owned(),
        alpha: Some(0.5),
        weights: by_domain(0.75, 0.25),
        target: by_domain(0.75, 0.25),
        previous_weights: None,
        student_perplexity: by_domain(12.0, 6.0),
        teacher_perplexity: by_domain(4.0, 4.0),
        gap: ratio
            .iter()
            .map(|(name, ratio)| (name.clone(), ratio.ln()))
            .collect(),
        ratio,
        evaluated_at_step: 4 * interval,
        discrepancy: None,
        losses: None,
        reference: None,
        excess: None,
        mean_weights: None,
        refused: None,
    }
}

/// A run of 8 steps in two intervals, with a limit of 20 steps.
fn run() -> (tempfile::TempDir, Journal) {
    let folder = tempfile::tempdir().unwrap();
    let config = "[run]\nname = \"small\"\nmax_intervals = 5\n[mixture]\ninterval = 4\n";
    fs::write(folder.path().join("config.toml"), config).unwrap();
    let journal = Journal::open(folder.path(), Lengths::default(), false).unwrap();
    journal.event(0, EventKind::Started, "process 1").unwrap();
    for interval in 0..2 {
        journal
            .mixture(&mixture(interval, by_domain(3.0 - interval as f64, 1.5)))
            .unwrap();
        for number in 1..=4 {
            journal.step(&step(4 * interval + number, 2.0)).unwrap();
        }
        let drawn = |tokens| Drawn {
            sequences: 1,
            tokens,
            epochs: 0.5,
        };
        let drawn = BTreeMap::from([
            ("coins".to_owned(), drawn(300)),
            ("rivers".to_owned(), drawn(100)),
        ]);
        journal.drawn(&DrawnLine { interval, drawn }).unwrap();
    }
    journal.event(8, EventKind::Saved, "10 bytes").unwrap();
    journal.event(8, EventKind::Skipped, "not finite").unwrap();
    (folder, journal)
}

#[test]
fn a_runs_folder_tells_how_it_stands() {
    let (folder, _journal) = run();
    let mut view = RunView::new(folder.path());
    view.refresh();
    let status = view.status(None);
    let mean = |coins: f64, rivers: f64| Some((coins.ln() + rivers.ln()) / 2.0);
    assert_eq!(status.problems, Vec::<String>::new());
    assert_eq!((status.step, status.step_limit), (8, Some(20)));
    assert_eq!((status.tokens, status.interval), (800, Some(1)));
    assert_eq!(status.state, State::Stopped);
    assert_eq!(
        (status.mean_gap_at_start, status.mean_gap),
        (mean(3.0, 1.5), mean(2.0, 1.5))
    );
    let scalar = |scalar| status.scalars.get(&scalar).copied();
    assert_eq!(scalar(Scalar::TokensPerSecond), Some(50.0));
    assert_eq!(
        (scalar(Scalar::CeLoss), scalar(Scalar::KdLoss)),
        (Some(2.0), Some(1.0))
    );
    let coins = &status.domains[0];
    assert_eq!(
        (coins.ratio, coins.weight, coins.token_share, coins.epochs),
        (Some(2.0), Some(0.75), Some(0.75), Some(0.5))
    );
    assert_eq!(status.incidents, BTreeMap::from([(EventKind::Skipped, 1)]));
    assert_eq!(status.saved.map(|saved| saved.step), Some(8));
    let mixture = view.mixture();
    let of = |value: fn(&IntervalRecord) -> f64| -> Vec<f64> {
        mixture.intervals.iter().map(value).collect()
    };
    assert_eq!(of(|interval| interval.mixture.step as f64), [0.0, 4.0]);
    assert_eq!(of(|interval| interval.mixture.ratio["coins"]), [3.0, 2.0]);
    assert_eq!(of(|interval| interval.tokens_before as f64), [0.0, 400.0]);
    let drawn =
        |interval: &IntervalRecord| interval.drawn.as_ref().unwrap()["rivers"].tokens as f64;
    assert_eq!(of(drawn), [100.0, 100.0]);
    let kinds: Vec<EventKind> = view.events().into_iter().map(|event| event.kind).collect();
    assert_eq!(
        kinds,
        [EventKind::Started, EventKind::Saved, EventKind::Skipped]
    );

    // Twelve steps of two seconds each are left. A process that works on the run holds its lock.
    let _held = RunFolder::open(folder.path()).unwrap();
    let status = view.status(None);
    assert_eq!(status.state, State::Running);
    assert_eq!(status.seconds_left, Some(24.0));
}

#[test]
fn a_run_that_goes_back_is_told_anew() {
    let (folder, journal) = run();
    let mut view = RunView::new(folder.path());
    view.refresh();
    let saved = journal.lengths();
    journal.step(&step(9, f64::NAN)).unwrap();
    view.refresh();
    assert_eq!(view.status(None).step, 9);
    assert_eq!(view.steps().scalars[&Scalar::CeLoss].last(), Some(&None));
    // Truncate the lines after the checkpoint, then repeat the step with other values.
    drop(journal);
    let journal = Journal::open(folder.path(), saved, false).unwrap();
    journal.step(&step(9, 7.0)).unwrap();
    journal.step(&step(10, 7.0)).unwrap();
    view.refresh();
    let (status, steps) = (view.status(None), view.steps());
    assert_eq!((status.step, status.tokens), (10, 1000));
    assert_eq!(steps.step, (1..=10).collect::<Vec<u64>>());
    assert_eq!(steps.scalars[&Scalar::CeLoss][8..], [Some(7.0), Some(7.0)]);
}

#[test]
fn many_intervals_stay_a_bounded_number_and_the_last_is_among_them() {
    let (folder, journal) = run();
    for interval in 2..5000 {
        journal
            .mixture(&mixture(interval, by_domain(1.5, 1.5)))
            .unwrap();
    }
    let mut view = RunView::new(folder.path());
    view.refresh();
    let intervals = view.mixture().intervals;
    let intervals: Vec<u64> = intervals.iter().map(|one| one.mixture.interval).collect();
    assert!(intervals.len() <= 1025, "{}", intervals.len());
    assert_eq!(intervals[..3], [0, 8, 16]);
    assert_eq!(intervals.last(), Some(&4999));
    assert_eq!(
        view.status(None).mean_gap_at_start,
        Some((3_f64.ln() + 1.5_f64.ln()) / 2.0)
    );
}

#[test]
fn what_cannot_be_read_is_a_problem_of_the_run_and_the_rest_is_shown() {
    let (folder, _journal) = run();
    let path = folder.path().join("run.jsonl");
    let text = fs::read_to_string(&path).unwrap() + "nonsense\n";
    fs::write(&path, text).unwrap();
    fs::write(folder.path().join("summary.json"), "{").unwrap();
    let mut view = RunView::new(folder.path());
    // The problem stays on later refreshes, which do not read the line again.
    for _ in 0..3 {
        view.refresh();
        let status = view.status(None);
        assert_eq!(status.step, 8);
        let problems = status.problems.join("\n");
        assert!(problems.contains("run.jsonl: a line is not a valid record"));
        assert!(problems.contains("summary.json: "), "{problems}");
    }
}

/// From the files alone: a run without a process has failed if its last process recorded a failure, unless a later one
/// started.
#[test]
fn a_run_without_a_process_is_told_apart_by_its_last_word() {
    let (folder, journal) = run();
    let mut view = RunView::new(folder.path());
    let state = |view: &mut RunView| {
        view.refresh();
        view.status(None).state
    };
    assert_eq!(state(&mut view), State::Stopped);
    journal
        .event(8, EventKind::Failed, "a part of the run failed")
        .unwrap();
    assert_eq!(state(&mut view), State::Failed);
    assert_eq!(view.status(None).seconds_left, None);
    journal.event(8, EventKind::Saved, "step 8").unwrap();
    assert_eq!(state(&mut view), State::Failed);
    journal.event(8, EventKind::Resumed, "process 2").unwrap();
    assert_eq!(state(&mut view), State::Stopped);
    journal
        .event(9, EventKind::Stopped, "received SIGTERM")
        .unwrap();
    assert_eq!(state(&mut view), State::Stopped);
    // The state that its process knows takes precedence.
    assert_eq!(view.status(Some(State::Failed)).state, State::Failed);
}

#[test]
fn a_span_of_time_has_its_two_largest_units() {
    let spans = [0.04, 9.94, 59.4, 90.0, 4321.0, 200_000.0].map(duration);
    assert_eq!(
        spans,
        [
            "0.0 s",
            "9.9 s",
            "59 s",
            "1 min 30 s",
            "1 h 12 min",
            "2 d 7 h"
        ]
    );
}

#[test]
fn the_runs_that_a_run_begins_with_come_in_their_order() {
    let (folder, _journal) = run();
    let begin = |name: &str, steps: u64| {
        let stage = folder.path().join("phases").join(name);
        fs::create_dir_all(&stage).unwrap();
        fs::write(
            stage.join("config.toml"),
            format!("[run]\nmax_steps = {steps}\n"),
        )
        .unwrap();
        let journal = Journal::open(&stage, Lengths::default(), false).unwrap();
        journal.event(0, EventKind::Started, "process 1").unwrap();
        journal.step(&step(1, 2.0)).unwrap();
    };
    begin("reference", 5);
    let mut view = RunView::read(folder.path());
    begin("proxy", 7);
    view.refresh();
    let stages: Vec<String> = view
        .status(None)
        .stages
        .iter()
        .map(Stage::to_string)
        .collect();
    assert_eq!(
        stages,
        [
            "reference: stopped, step 1 of 5",
            "proxy: stopped, step 1 of 7"
        ]
    );
}
