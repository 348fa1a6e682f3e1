//! Commands to a running run: their effects, and that a run is the same with and without an interruption.

use std::sync::Arc;

use ddk_actors::{End, PortError};
use ddk_run::{
    OVERRIDES,
    control::{Command, Outcome, Reply},
    records::EventKind,
};
use serde_json::Value;

use crate::fakes::World;

fn set(key: &str, value: impl Into<Value>) -> Command {
    Command::Set {
        values: [(key.to_owned(), value.into())].into(),
    }
}

fn telling(commands: &[(u64, Command)]) -> World {
    let mut world = World::new();
    world.commands = commands.to_vec();
    world
}

fn answers(world: &World) -> Vec<Outcome> {
    std::mem::take(&mut world.observer.answers.lock().unwrap())
}

fn refusals(world: &World) -> Vec<String> {
    let refused = answers(world).into_iter().filter_map(Result::err);
    refused.map(|refusal| refusal.0).collect()
}

#[tokio::test]
async fn a_pause_a_checkpoint_and_an_evaluation_leave_the_run_as_it_is() {
    for lag in [0, 1] {
        let lagging = |mut world: World| {
            world.plan.lag = lag;
            world
        };
        let whole = lagging(World::new());
        whole.run().await.unwrap();
        // In the middle of an interval, at the end of one, and before one begins.
        for step in [3, 5, 7, 10] {
            let world = lagging(telling(&[
                (step, Command::Checkpoint),
                (step, Command::Pause),
                (step, Command::Evaluate),
                (step, Command::Checkpoint),
                (step, Command::Resume),
            ]));
            world.run().await.unwrap().unwrap();
            assert!(
                world.trajectory() == whole.trajectory(),
                "lag {lag}, step {step}"
            );
            let mut replies: Vec<Reply> = answers(&world).into_iter().map(Result::unwrap).collect();
            replies.sort_by_key(|reply| matches!(reply, Reply::Checkpoint { .. }));
            let [
                Reply::Pause { step: paused },
                Reply::Evaluate {
                    student_perplexity,
                    teacher_perplexity,
                    ..
                },
                Reply::Resume { .. },
                Reply::Checkpoint {
                    step: saved, bytes, ..
                },
                Reply::Checkpoint { .. },
            ] = &replies[..]
            else {
                panic!("{replies:?}");
            };
            assert_eq!((*paused, *saved), (step, step));
            assert!(*bytes > 0);
            assert_eq!(teacher_perplexity["b"], 3.0);
            assert!(student_perplexity["b"] > 3.0);
            let events = world.observer.events.lock().unwrap();
            let at = |kind| {
                events
                    .iter()
                    .filter(|event| event.kind == kind && event.step == step)
                    .count()
            };
            assert_eq!(
                [EventKind::Paused, EventKind::Evaluated, EventKind::Unpaused].map(at),
                [1, 1, 1]
            );
            assert!(at(EventKind::Saved) >= 2);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_setting_that_changes_changes_again_when_the_run_is_repeated() {
    let commands = [
        (4, set("optimizer.lr", 0.5)),
        (8, set("checkpoint.interval", 2)),
        (11, set("optimizer.lr", 0.25)),
    ];
    let whole = telling(&commands);
    whole.run().await.unwrap();
    assert!(answers(&whole).iter().all(Result::is_ok));
    let rates: Vec<f64> = whole
        .lines("run.jsonl")
        .iter()
        .map(|line| line["learning_rate"].as_f64().unwrap())
        .collect();
    assert_eq!(
        (rates[3], rates[4], rates[10], rates[11]),
        (3e-5, 0.5, 0.5, 0.25)
    );
    let saved = |world: &World| -> Vec<u64> {
        let events = world.observer.events.lock().unwrap();
        let saves = events.iter().filter(|event| event.kind == EventKind::Saved);
        saves.map(|event| event.step).collect()
    };
    assert_eq!(saved(&whole), [3, 6, 8, 10, 12, 14, 16, 17]);

    // A run that starts with the same file needs no commands.
    let repeated = World::new();
    let file = whole.folder.path().join(OVERRIDES);
    std::fs::copy(&file, repeated.folder.path().join(OVERRIDES)).unwrap();
    repeated.run().await.unwrap();
    assert!(repeated.trajectory() == whole.trajectory());
    assert_eq!(saved(&repeated), saved(&whole));

    // A run that dies repeats its changes too, whether they came before or after its last checkpoint.
    for died in [5, 8, 9, 12, 13] {
        let mut world = telling(&commands).dying_in(died);
        world.run().await.unwrap_err();
        world.hook = Arc::new(|_, _| Ok(()));
        let said = commands.iter().filter(|(step, _)| *step >= died);
        world.commands = said.cloned().collect();
        world.run().await.unwrap();
        assert!(
            world.trajectory() == whole.trajectory(),
            "died in step {died}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let whole = World::new();
    whole.run().await.unwrap();
    let world = telling(&[
        (2, Command::Resume),
        (2, set("optimizer.lr", -1)),
        (2, set("optimizer.lr", "fast")),
        (2, set("student.rate", 1)),
        (2, set("optimizer.beta1", 0.5)),
        (3, Command::Pause),
        (3, Command::Pause),
        (3, Command::Resume),
    ]);
    world.run().await.unwrap();
    let refused = refusals(&world);
    for expected in [
        "the run is not paused",
        "optimizer.lr=-1: `optimizer.lr` is -1",
        "optimizer.lr=fast: found the string",
        "unknown field `rate`",
        "`optimizer.beta1` cannot change while the run trains; these can: ",
        "the run is already paused",
    ] {
        assert!(
            refused.iter().any(|text| text.contains(expected)),
            "{expected}: {refused:#?}"
        );
    }
    assert_eq!(refused.len(), 6);
    assert!(world.trajectory() == whole.trajectory());
    assert!(!world.folder.path().join(OVERRIDES).exists());
}

#[tokio::test]
async fn a_paused_run_can_be_stopped_and_resumes_unpaused() {
    let whole = World::new();
    whole.run().await.unwrap();
    let mut world = telling(&[(6, Command::Pause)]);
    world.stop_after = Some(6);
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!((outcome.end, outcome.step), (End::Stopped, 6));
    (world.commands, world.stop_after) = (Vec::new(), None);
    world.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
}

/// The stop cuts off the evaluation, and it must also end the pause.
#[tokio::test]
async fn a_stop_in_an_evaluation_that_was_asked_for_ends_the_pause() {
    let whole = World::new();
    whole.run().await.unwrap();
    let mut world = telling(&[(6, Command::Pause), (6, Command::Evaluate)]);
    let observer = world.observer.clone();
    world.hook = Arc::new(move |place, step| match (place, step) {
        ("evaluate student", 6) => {
            observer.tell(Command::Stop);
            Ok(())
        }
        ("evaluate until told", 6) => Err(PortError::Other("held".to_owned())),
        _ => Ok(()),
    });
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!((outcome.end, outcome.step), (End::Stopped, 6));
    assert!(
        refusals(&world)
            .iter()
            .any(|text| text.contains("the run is ending"))
    );
    world.commands.clear();
    world.hook = Arc::new(|_, _| Ok(()));
    world.run().await.unwrap();
    assert!(world.trajectory() == whole.trajectory());
}

/// The teacher fails during a pause: the last step is saved, and the run ends with the cause.
#[tokio::test]
async fn a_failure_ends_a_pause() {
    let mut world = telling(&[(6, Command::Pause)]);
    // The batch that the teacher has in hand while its output queue is full.
    world.hook = Arc::new(|place, number| {
        assert!(!(place == "label" && number == 20), "the teacher dies");
        Ok(())
    });
    let error = world.run().await.unwrap_err().to_string();
    assert!(error.contains("teacher-0 failed"), "{error}");
    assert_eq!(world.lines("run.jsonl").len(), 6);
}
