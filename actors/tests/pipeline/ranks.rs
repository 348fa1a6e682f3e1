//! A run on several ranks: the same files, checkpoints and result as on one.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ddk_actors::{End, Outcome, PortError, StopReason};
use ddk_mixture::{Odm, Policy, Sheared};
use ddk_run::{control::Command, records::EventKind};
use serde_json::Value;

use crate::fakes::{
    World, dawdle,
    peers::{Ended, Fleet},
};

/// A run of 17 steps with four slots.
pub fn world() -> World {
    let mut world = World::new();
    world.plan.sequences_per_step = 8;
    world.plan.slots = 4;
    world
}

/// The parts of a result that do not depend on time.
pub fn numbers(outcome: &Outcome) -> Value {
    let totals = &outcome.totals;
    serde_json::json!({
        "end": format!("{:?}", outcome.end),
        "step": outcome.step,
        "intervals": outcome.intervals,
        "baseline": format!("{:?}", outcome.baseline),
        "after": format!("{:?}", outcome.after),
        "measured": format!("{:?}", outcome.measured),
        "tokens": totals.tokens,
        "flops": [
            totals.teacher_flops,
            totals.teacher_flops_saved,
            totals.student_flops,
            totals.evaluation_flops,
            totals.teacher_evaluation_flops,
            totals.mixture_flops,
        ],
    })
}

/// The state in the newest checkpoint, without times and lengths of files that hold times.
fn state(world: &World) -> Value {
    let checkpoints = fs::read_dir(world.folder.path().join("checkpoints")).unwrap();
    let newest = checkpoints
        .map(|entry| entry.unwrap().path())
        .max()
        .unwrap();
    let text = fs::read_to_string(newest.join("state.json")).unwrap();
    let mut state: Value = serde_json::from_str(&text).unwrap();
    let entries = state.as_object_mut().unwrap();
    assert!(entries.remove("lengths").is_some());
    let totals = entries["totals"].as_object_mut().unwrap();
    let count = totals.len();
    totals.retain(|name, _| !name.ends_with("_seconds"));
    assert!(totals.len() < count && totals.len() >= 5, "{totals:?}");
    state
}

/// Everything that must be equal: files, state, and the result.
type Record = (
    (std::collections::BTreeMap<&'static str, Vec<Value>>, u64),
    Value,
    Value,
);

/// The record of a finished run. Every rank must have the same result, and only rank 0 writes files.
pub fn record(fleet: &Fleet, ended: Vec<Ended>) -> Record {
    let outcomes: Vec<Value> = ended
        .into_iter()
        .map(|ended| numbers(&ended.unwrap().unwrap()))
        .collect();
    assert!(
        outcomes.iter().all(|outcome| *outcome == outcomes[0]),
        "{outcomes:#?}"
    );
    for other in &fleet.worlds[1..] {
        let files = fs::read_dir(other.folder.path()).unwrap();
        assert_eq!(files.count(), 0, "another rank than 0 wrote a file");
    }
    let first = fleet.first();
    (first.trajectory(), state(first), outcomes[0].clone())
}

/// The record of a run on this many ranks from its start to its end.
pub fn whole(ranks: usize, make: impl Fn() -> World + 'static) -> Record {
    let mut fleet = Fleet::new(ranks, make);
    let ended = fleet.run();
    assert_eq!(fleet.exchanges > 5, ranks > 1);
    record(&fleet, ended)
}

/// Policies that need perplexities, both, and training losses.
fn policies() -> [Policy; 3] {
    let first = ddk_mixture::InitialMixture::Natural;
    [
        World::new().policy,
        Policy::Sheared(Sheared::new(5, first, vec![None; 3])),
        Policy::Odm(Odm::new(0.9)),
    ]
}

#[test]
fn any_number_of_ranks_writes_the_same_run() {
    for policy in policies() {
        for (lag, micro_rows) in [(0, 1), (0, 2), (1, 1), (1, 2)] {
            let policy = policy.clone();
            let make = move || {
                let mut world = world();
                world.policy = policy.clone();
                (world.plan.lag, world.plan.micro_rows) = (lag, micro_rows);
                world.plan.keep_best = true;
                world.plan.evaluation_every = Some(6);
                // Ranks that are not in step: each world has another delay.
                static WORLDS: AtomicU64 = AtomicU64::new(0);
                let delay = 7 * WORLDS.fetch_add(1, Ordering::Relaxed);
                world.hook = Arc::new(move |place, number| {
                    dawdle(delay + 31 * place.len() as u64 + number);
                    Ok(())
                });
                world
            };
            let alone = whole(1, make.clone());
            for (ranks, replicas) in [(2, 1), (2, 2), (4, 1)] {
                let make = make.clone();
                let together = whole(ranks, move || {
                    let mut world = make();
                    world.plan.replicas = replicas;
                    world
                });
                assert!(
                    together == alone,
                    "{ranks} ranks, lag {lag}, {micro_rows} sequences"
                );
            }
        }
    }
}

/// Otherwise, the test above could not tell slots apart.
#[test]
fn the_fake_student_depends_on_slots() {
    let with = |slots| {
        let make = move || {
            let mut world = world();
            world.plan.slots = slots;
            world
        };
        whole(1, make).0.1
    };
    assert!(with(1) != with(2) && with(2) != with(4));
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    for lag in [0, 1] {
        let make = move || {
            let mut world = world();
            world.plan.lag = lag;
            world
        };
        let uninterrupted = whole(2, make);
        let mut fleet = Fleet::new(4, make);
        for (stop_after, next) in [(2, 2), (6, 1), (11, 4), (13, 2)] {
            fleet.worlds[0].stop_after = Some(stop_after);
            for ended in fleet.run() {
                let outcome = ended.unwrap().unwrap();
                assert_eq!(outcome.end, End::Stopped);
                assert!(outcome.step <= stop_after + 1);
            }
            fleet.worlds[0].stop_after = None;
            fleet.resize(next);
        }
        let ended = fleet.run();
        assert!(record(&fleet, ended) == uninterrupted, "lag {lag}");
    }
}

/// Limits that the weight scheduler knows, at once or an interval ahead.
#[test]
fn all_ranks_end_with_the_same_step() {
    for (lag, target_gap, max_passes) in [
        (0, Some(10.0_f64.ln()), None),
        (1, Some(100.0_f64.ln()), None),
        (0, None, Some(2.0)),
        (1, None, Some(3.0)),
    ] {
        let make = move || {
            let mut world = world();
            world.plan.lag = lag;
            (world.plan.target_gap, world.plan.max_passes) = (target_gap, max_passes);
            world.plan.max_steps = None;
            world.hook = Arc::new(|place, number| {
                let times = if place == "evaluate copy" { 60 } else { 0 };
                (0..times).for_each(|time| dawdle(number + time));
                Ok(())
            });
            world
        };
        let expected = match target_gap {
            Some(_) => End::Finished(StopReason::TargetGap),
            None => End::Finished(StopReason::MaxEpochs),
        };
        let alone = whole(1, make).0;
        for ranks in [2, 4] {
            let (files, _, outcome) = whole(ranks, make);
            assert!(files == alone, "{ranks} ranks, lag {lag}");
            assert_eq!(outcome["end"], format!("{expected:?}"));
        }
    }
}

/// The step at which all ranks stopped.
fn stopped(ended: Vec<Ended>) -> u64 {
    let outcomes: Vec<Outcome> = ended
        .into_iter()
        .map(|ended| ended.unwrap().unwrap())
        .collect();
    let ends: Vec<(End, u64)> = outcomes
        .iter()
        .map(|outcome| (outcome.end, outcome.step))
        .collect();
    assert!(
        ends.iter().all(|end| *end == (End::Stopped, ends[0].1)),
        "{ends:?}"
    );
    ends[0].1
}

/// Runs the rest, which must make the run whole.
fn finish(mut fleet: Fleet) {
    for world in &mut fleet.worlds {
        world.hook = Arc::new(|_, _| Ok(()));
        (world.stop_after, world.commands) = (None, Vec::new());
    }
    let lag = fleet.first().plan.lag;
    let ended = fleet.run();
    let expected = whole(1, move || {
        let mut world = world();
        world.plan.lag = lag;
        world
    });
    assert!(record(&fleet, ended) == expected);
}

#[test]
fn a_stop_that_one_rank_hears_stops_all_at_the_same_step() {
    for (lag, rank) in [(0, 0), (0, 1), (0, 3), (1, 2)] {
        let mut fleet = Fleet::new(4, move || {
            let mut world = world();
            world.plan.lag = lag;
            world
        });
        // Step 8 has the next exchange.
        fleet.worlds[rank].stop_after = Some(7);
        assert_eq!(stopped(fleet.run()), 8, "rank {rank}");
        finish(fleet);
    }
}

#[test]
fn a_stop_in_an_evaluation_cuts_it_off_on_all_ranks() {
    // At the end of an interval, and after the last step.
    for step in [10, 17] {
        let mut fleet = Fleet::new(2, world);
        for (rank, world) in fleet.worlds.iter_mut().enumerate() {
            let observer = world.observer.clone();
            world.hook = Arc::new(move |place, number| match (place, number == step) {
                ("evaluate student", true) if rank == 1 => {
                    observer.tell(Command::Stop);
                    Ok(())
                }
                ("evaluate until told", true) => Err(PortError::Other("held".to_owned())),
                _ => Ok(()),
            });
        }
        assert_eq!(stopped(fleet.run()), step);
        finish(fleet);
    }
}

/// Rank 0 is asked for an evaluation after step 7, and rank 1 is told to stop during it.
#[test]
fn a_stop_in_an_evaluation_that_was_asked_for_stops_all_ranks() {
    let mut fleet = Fleet::new(2, world);
    fleet.worlds[0].commands = vec![(6, Command::Evaluate)];
    for (rank, world) in fleet.worlds.iter_mut().enumerate() {
        let observer = world.observer.clone();
        world.hook = Arc::new(move |place, number| match (place, number) {
            ("evaluate student", 7) if rank == 1 => {
                observer.tell(Command::Stop);
                Ok(())
            }
            ("evaluate until told", 7) => Err(PortError::Other("held".to_owned())),
            _ => Ok(()),
        });
    }
    assert_eq!(stopped(fleet.run()), 7);
    let answers = std::mem::take(&mut *fleet.first().observer.answers.lock().unwrap());
    let refused = answers.into_iter().map(|answer| answer.unwrap_err().0);
    assert_eq!(refused.collect::<Vec<_>>(), ["the run is ending"]);
    finish(fleet);
}

/// The teacher of rank 1 does not answer any more. Its deadline passes, and both ranks drop the step.
#[test]
fn a_rank_whose_batch_does_not_come_gives_the_step_up_for_all() {
    let mut fleet = Fleet::new(2, || {
        let mut world = world();
        world.plan.recovery.shutdown_grace_seconds = 0.1;
        world
    });
    let gate = Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    fleet.worlds[1].stop_after = Some(7);
    fleet.worlds[1].hook = Arc::new(move |place, number| {
        let (open, changed) = &*gate;
        match (place, number) {
            // The second of two micro-batches of step 8.
            ("label", 15) => {
                let guard = open.lock().unwrap();
                drop(changed.wait_while(guard, |open| !*open).unwrap());
            }
            ("snapshot", 7) => {
                *open.lock().unwrap() = true;
                changed.notify_all();
            }
            _ => {}
        }
        Ok(())
    });
    assert_eq!(stopped(fleet.run()), 7);
    assert_eq!(fleet.first().lines("run.jsonl").len(), 7);
    for world in &mut fleet.worlds {
        world.plan.recovery.shutdown_grace_seconds = 20.0;
    }
    finish(fleet);
}

#[test]
fn a_stop_ends_a_pause_whichever_rank_hears_it() {
    for rank in [0, 1] {
        let mut fleet = Fleet::new(2, world);
        fleet.worlds[0].commands = vec![(5, Command::Pause)];
        let stop = (EventKind::Paused, Command::Stop);
        fleet.worlds[rank]
            .observer
            .replies
            .lock()
            .unwrap()
            .push(stop);
        // The exchange of step 6 carries the pause.
        assert_eq!(stopped(fleet.run()), 6, "rank {rank}");
        finish(fleet);
    }
}
