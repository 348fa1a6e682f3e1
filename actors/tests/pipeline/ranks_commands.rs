//! Users' commands to a run on several ranks: rank 0 takes them, all carry them out.

use std::sync::Arc;

use ddk_actors::PortError;
use ddk_run::{
    OVERRIDES,
    control::{Command, Outcome, Reply},
    records::EventKind,
};

use crate::{
    fakes::{World, peers::Fleet},
    ranks::{record, whole, world},
};

fn set_rate(value: impl Into<serde_json::Value>) -> Command {
    Command::Set {
        values: [("optimizer.lr".to_owned(), value.into())].into(),
    }
}

fn answers(world: &World) -> Vec<Outcome> {
    std::mem::take(&mut world.observer.answers.lock().unwrap())
}

/// The name and the step of each reply, in the order of the answers.
fn replies(world: &World) -> Vec<(&'static str, u64)> {
    let name = |answer: Outcome| match answer.unwrap() {
        Reply::Checkpoint { step, .. } => ("checkpoint", step),
        Reply::Evaluate { step, .. } => ("evaluate", step),
        Reply::Pause { step } => ("pause", step),
        Reply::Resume { step, .. } => ("resume", step),
        Reply::Set { step, .. } => ("set", step),
        other => panic!("{other:?}"),
    };
    answers(world).into_iter().map(name).collect()
}

fn overrides(world: &World) -> usize {
    let text = std::fs::read_to_string(world.folder.path().join(OVERRIDES));
    text.map_or(0, |text| text.lines().count())
}

/// A run on one rank that is told to change the learning rate after step 4.
fn changed(lag: u64) -> impl Fn() -> World {
    move || {
        let mut world = world();
        world.plan.lag = lag;
        world.commands = vec![(4, set_rate(0.5))];
        world
    }
}

#[test]
fn commands_are_carried_out_in_order_after_the_step_that_carries_them() {
    for lag in [0, 1] {
        let mut fleet = Fleet::new(2, move || {
            let mut world = world();
            world.plan.lag = lag;
            world
        });
        // The exchange of step 4 carries all of them.
        let commands = [
            Command::Pause,
            Command::Evaluate,
            set_rate(0.5),
            Command::Resume,
            Command::Checkpoint,
        ];
        fleet.worlds[0].commands = commands.map(|command| (3, command)).to_vec();
        let ended = fleet.run();
        let mut got = replies(fleet.first());
        // The checkpoint's answer comes once it is on the disk.
        got.sort_by_key(|(name, _)| *name == "checkpoint");
        let expected = [
            ("pause", 4),
            ("evaluate", 4),
            ("set", 5),
            ("resume", 4),
            ("checkpoint", 4),
        ];
        assert_eq!(got, expected, "lag {lag}");
        assert_eq!(overrides(fleet.first()), 1);
        let mut record = record(&fleet, ended);
        let mut expected = whole(1, changed(lag));
        // An evaluation that was asked for costs something, too.
        for record in [&mut record, &mut expected] {
            record.1["totals"]["evaluation_flops"].take();
            record.2["flops"][3].take();
        }
        assert!(record == expected, "lag {lag}");
    }
}

/// Each command comes while the run is paused, after the one before is done.
#[test]
fn a_paused_run_takes_commands() {
    let mut fleet = Fleet::new(2, world);
    fleet.worlds[0].commands = vec![(3, Command::Pause)];
    *fleet.worlds[0].observer.replies.lock().unwrap() = vec![
        (EventKind::Paused, Command::Evaluate),
        (EventKind::Evaluated, set_rate(0.5)),
        (EventKind::Changed, Command::Checkpoint),
    ];
    // The checkpoint of step 4 is the second: the first is that of step 3.
    let (observer, saved) = (fleet.worlds[0].observer.clone(), std::sync::OnceLock::new());
    fleet.worlds[0].hook = Arc::new(move |place, number| {
        if (place, number) == ("snapshot", 4) && saved.set(()).is_ok() {
            observer.tell(Command::Resume);
        }
        Ok(())
    });
    let ended = fleet.run();
    let mut got = replies(fleet.first());
    got.sort_unstable();
    let expected = [
        ("checkpoint", 4),
        ("evaluate", 4),
        ("pause", 4),
        ("resume", 4),
        ("set", 5),
    ];
    assert_eq!(got, expected);
    let mut record = record(&fleet, ended);
    let mut expected = whole(1, changed(0));
    for record in [&mut record, &mut expected] {
        record.1["totals"]["evaluation_flops"].take();
        record.2["flops"][3].take();
    }
    assert!(record == expected);
}

#[test]
fn what_rank_0_refuses_changes_no_rank() {
    let mut fleet = Fleet::new(2, world);
    fleet.worlds[0].commands = vec![(3, set_rate(-1)), (3, Command::Resume)];
    let ended = fleet.run();
    let refused: Vec<String> = answers(fleet.first())
        .into_iter()
        .map(|answer| answer.unwrap_err().0)
        .collect();
    assert!(refused[0].contains("`optimizer.lr` is -1"), "{refused:?}");
    assert_eq!(refused[1], "the run is not paused");
    assert_eq!(overrides(fleet.first()), 0);
    assert!(record(&fleet, ended) == whole(1, world));
}

/// Rank 0 cannot write the change, so it must not apply on the other ranks either.
#[test]
fn a_change_that_cannot_be_written_applies_nowhere() {
    let mut fleet = Fleet::new(2, world);
    fleet.worlds[0].commands = vec![(3, set_rate(0.5))];
    let path = fleet.first().folder.path().join(OVERRIDES);
    // A folder in the place of the file.
    fleet.worlds[0].hook = Arc::new(move |place, number| {
        if (place, number) == ("update", 3) {
            std::fs::create_dir(&path).map_err(|error| PortError::Other(error.to_string()))?;
        }
        Ok(())
    });
    let ended = fleet.run();
    let refused = answers(fleet.first()).remove(0).unwrap_err().0;
    assert!(refused.starts_with("nothing changed: "), "{refused}");
    assert!(record(&fleet, ended) == whole(1, world));
}

#[test]
fn other_ranks_refuse_commands() {
    let mut fleet = Fleet::new(2, world);
    let commands = [
        Command::Pause,
        Command::Evaluate,
        set_rate(0.5),
        Command::Checkpoint,
    ];
    fleet.worlds[1].commands = commands.map(|command| (3, command)).to_vec();
    let ended = fleet.run();
    let answers = answers(&fleet.worlds[1]);
    assert_eq!(answers.len(), 4);
    for answer in answers {
        let text = answer.unwrap_err().0;
        assert_eq!(
            text,
            "only rank 0 of the run takes commands, and this is rank 1"
        );
    }
    assert!(record(&fleet, ended) == whole(1, world));
}
