//! Workers that fail: they recover if possible; otherwise the error names them. A run never hangs.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ddk_actors::{PortError, RunError, worker::Exit};
use ddk_run::records::EventKind;

use crate::fakes::{World, saving_every};

/// Panics the first `times` times that the pipeline reaches `place` with this number.
fn panics(place: &'static str, number: u64, times: u64) -> crate::fakes::Hook {
    let left = Arc::new(AtomicU64::new(times));
    Arc::new(move |at, n| {
        let here = at == place && n == number;
        if here
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
        {
            panic!("on purpose in {place}");
        }
        Ok(())
    })
}

#[tokio::test(start_paused = true)]
async fn a_teacher_or_loader_that_panics_is_built_again_and_nothing_is_lost() {
    let whole = World::new();
    whole.run().await.unwrap();
    for (place, number, part) in [
        ("label", 0, "teacher-0"),
        ("label", 7, "teacher-"),
        ("evaluate teacher", 0, "teacher-0"),
        ("read", 1003, "loader-b"),
        ("read", 0, "loader-a"),
    ] {
        for (replicas, depth) in [(1, 0), (2, 2)] {
            let mut world = World::new();
            world.plan.replicas = replicas;
            world.plan.queue_depth = depth;
            world.hook = panics(place, number, 2);
            world.run().await.unwrap();
            assert!(
                world.trajectory() == whole.trajectory(),
                "{place} {number}, {replicas} replicas"
            );
            let events = world.observer.events.lock().unwrap();
            let restarts: Vec<_> = events
                .iter()
                .filter(|event| event.kind == EventKind::Restarted)
                .collect();
            assert_eq!(restarts.len(), 2);
            assert!(
                restarts[0].message.contains(part) && restarts[0].message.contains("on purpose"),
                "{:?}",
                restarts[0]
            );
        }
    }
}

#[tokio::test]
async fn a_part_that_cannot_be_healed_is_named_and_the_last_step_is_saved() {
    let mut world = World::new();
    world.hook = panics("label", 20, u64::MAX);
    let error = world.run().await.unwrap_err().to_string();
    assert!(
        error.contains("teacher-0 failed: it panicked: on purpose in label"),
        "{error}"
    );
    let steps = world.lines("run.jsonl").len() as u64;
    // Batches 0 to 19 could be labeled: six complete steps of three. The seventh was never finished.
    assert_eq!(steps, 6);
    world.hook = Arc::new(|_, _| Ok(()));
    world.run().await.unwrap();
    let whole = World::new();
    whole.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
}

/// Makes reading sequence 5 of domain c fail `times` times.
fn unreadable(times: u64) -> crate::fakes::Hook {
    let left = Arc::new(AtomicU64::new(times));
    let count_down = |left: u64| left.checked_sub(1);
    Arc::new(move |place, number| {
        let here = (place, number) == ("read", 2005);
        if here
            && left
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, count_down)
                .is_ok()
        {
            Err(PortError::Data(
                "cannot read c/tokens.bin at byte 5: input/output error".to_owned(),
            ))
        } else {
            Ok(())
        }
    })
}

#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_read_are_tried_again_and_then_end_the_run_with_their_place() {
    let whole = World::new();
    whole.run().await.unwrap();
    let mut world = World::new();
    world.hook = unreadable(3);
    world.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
    let restarts = |world: &World| {
        let events = world.observer.events.lock().unwrap();
        let of_kind = events
            .iter()
            .filter(|event| event.kind == EventKind::Restarted);
        of_kind.count()
    };
    assert_eq!(restarts(&world), 3);

    let mut world = World::new();
    world.hook = unreadable(u64::MAX);
    let error = world.run().await.unwrap_err().to_string();
    assert_eq!(
        error,
        "loader-c failed: cannot read c/tokens.bin at byte 5: input/output error"
    );
    assert_eq!(restarts(&world), 3);
    world.hook = unreadable(0);
    world.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
}

#[tokio::test(start_paused = true)]
async fn a_batcher_that_fails_is_named_and_the_last_step_is_saved() {
    let whole = World::new();
    whole.run().await.unwrap();
    let mut world = World::new();
    world.hook = panics("draw", 7, u64::MAX);
    let error = world.run().await.unwrap_err().to_string();
    assert!(error.contains("batcher failed: it panicked"), "{error}");
    world.hook = Arc::new(|_, _| Ok(()));
    world.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
}

#[tokio::test]
async fn a_part_that_cannot_be_built_is_an_error_of_the_start() {
    for (place, part) in [("build teacher", "teacher-0"), ("build student", "student")] {
        let mut world = World::new();
        world.hook = Arc::new(move |at, _| {
            if at == place {
                Err(PortError::Other("models/x holds no config.json".to_owned()))
            } else {
                Ok(())
            }
        });
        let error = world.run().await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("{part} could not be started: models/x holds no config.json")
        );
        assert!(world.lines("run.jsonl").is_empty());
    }
}

#[tokio::test]
async fn a_save_that_fails_is_an_event_and_only_the_last_one_an_error() {
    let whole = World::new();
    whole.run().await.unwrap();
    let mut world = World::new();
    world.full_disk = vec![6, 9];
    world.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
    let kinds: Vec<(EventKind, u64)> = world
        .observer
        .events
        .lock()
        .unwrap()
        .iter()
        .map(|event| (event.kind, event.step))
        .collect();
    for expected in [
        (EventKind::Saved, 3),
        (EventKind::SaveFailed, 6),
        (EventKind::SaveFailed, 9),
        (EventKind::Saved, 12),
        (EventKind::Saved, 17),
    ] {
        assert!(
            kinds.contains(&expected),
            "{expected:?} is not in {kinds:?}"
        );
    }

    let mut world = World::new();
    world.full_disk = vec![17];
    let error = world.run().await.unwrap_err().to_string();
    assert!(error.contains("cannot save the last checkpoint"), "{error}");
    world.full_disk.clear();
    world.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
}

/// Skips the updates of these steps.
fn no_updates(steps: &'static [u64]) -> crate::fakes::Hook {
    Arc::new(move |place, step| {
        if place == "no update" && steps.contains(&step) {
            Err(PortError::Other("on purpose".to_owned()))
        } else {
            Ok(())
        }
    })
}

fn rolled_back(error: &RunError) -> Option<(u64, u64)> {
    match error {
        RunError::Worker {
            cause: Exit::Failed(PortError::RollBack { steps, .. }),
            ..
        } => Some((*steps.start(), *steps.end())),
        _ => None,
    }
}

/// A step on the skip list neither counts as a consecutive skip nor ends the series.
#[tokio::test]
async fn a_roll_back_begins_with_the_first_step_without_an_update() {
    let mut world = World::new();
    world.plan.recovery.max_consecutive_skips = 2;
    world.plan.skip = [6].into();
    world.hook = no_updates(&[5, 7]);
    let error = world.run().await.unwrap_err();
    assert_eq!(rolled_back(&error), Some((5, 7)), "{error}");
}

/// A checkpoint within such a series holds the steps skipped before it. Once they are on the skip list, they no longer
/// count.
#[tokio::test]
async fn steps_that_were_rolled_back_do_not_count_again() {
    let mut world = World::new();
    world.plan.recovery.max_consecutive_skips = 2;
    world.plan.live = saving_every(1);
    world.hook = no_updates(&[5, 6, 7]);
    let error = world.run().await.unwrap_err();
    assert_eq!(rolled_back(&error), Some((5, 6)), "{error}");
    world.plan.skip = [5, 6].into();
    world.run().await.unwrap().unwrap();
}

#[tokio::test]
async fn tokens_of_steps_without_an_update_are_not_trained_on() {
    let mut world = World::new();
    world.plan.skip = [6].into();
    world.hook = no_updates(&[5, 9]);
    let outcome = world.run().await.unwrap().unwrap();
    let mut expected = vec![0; 3];
    for sample in world.lines("samples.jsonl") {
        if [5, 6, 9].contains(&sample["step"].as_u64().unwrap()) {
            continue;
        }
        let domain = ["a", "b", "c"]
            .iter()
            .position(|name| sample["domain"] == *name);
        expected[domain.unwrap()] += sample["spans"][0]["tokens"].as_u64().unwrap();
    }
    assert_eq!(outcome.totals.tokens, expected);
    let lines = world.lines("run.jsonl");
    let tokens = |line: &serde_json::Value| line["tokens"].as_u64().unwrap();
    assert_eq!(
        lines.iter().map(tokens).sum::<u64>(),
        outcome.totals.all_tokens()
    );
    for step in [5, 6, 9] {
        assert_eq!(tokens(&lines[step - 1]), 0, "step {step}");
    }
}

#[tokio::test]
async fn an_engine_that_counts_other_targets_than_the_corpus_ends_the_run() {
    let mut world = World::new();
    world.hook = Arc::new(|place, number| match (place, number) {
        ("miscount", 7) => Err(PortError::Other("one more".to_owned())),
        _ => Ok(()),
    });
    let error = world.run().await.unwrap_err().to_string();
    assert!(error.contains("step 3, micro-batch 7: "), "{error}");
}
