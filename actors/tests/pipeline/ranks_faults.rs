//! Ranks that fail, disagree or get lost: all end, none hangs, and the run resumes from its last checkpoint.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use ddk_actors::{PortError, Work};
use ddk_run::{OVERRIDES, Override, Source, records::EventKind};
use serde_json::Value;

use crate::{
    fakes::{
        World,
        peers::{Ended, Fleet, Hub},
        saving_every,
    },
    ranks::{record, whole, world},
};

const AGAIN: &str = "; all ranks must start again from the last checkpoint, which torchrun does with --max-restarts";

/// The errors that the ranks ended with.
fn errors(ended: Vec<Ended>) -> Vec<String> {
    let error = |ended: Ended| ended.unwrap_err().to_string();
    ended.into_iter().map(error).collect()
}

fn overrides(world: &World) -> Vec<Override> {
    let text = std::fs::read_to_string(world.folder.path().join(OVERRIDES));
    let text = text.unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Starts all ranks again without what went wrong. The run must become whole.
fn again(mut fleet: Fleet) {
    for world in &mut fleet.worlds {
        world.hook = Arc::new(|_, _| Ok(()));
        world.full_disk.clear();
    }
    fleet.tamper = Arc::new(|_, _| None);
    let ended = fleet.run();
    assert!(record(&fleet, ended) == whole(1, world));
}

/// The step of the newest checkpoint.
fn saved(fleet: &Fleet) -> u64 {
    let events = fleet.first().observer.events.lock().unwrap();
    let saves = events.iter().filter(|event| event.kind == EventKind::Saved);
    saves.map(|event| event.step).max().unwrap_or(0)
}

#[test]
fn ranks_of_different_runs_do_not_begin() {
    for ranks in [2, 4] {
        let mut fleet = Fleet::new(ranks, world);
        fleet.worlds[1].plan.seed = 12;
        for (rank, error) in errors(fleet.run()).iter().enumerate() {
            assert_eq!(
                *error,
                format!(
                    "student of rank {rank} failed: ranks disagree at step 1 about the seed: 12 on rank 1, 11 on \
                     rank 0{AGAIN}"
                )
            );
        }
        assert!(fleet.first().lines("run.jsonl").is_empty());
        fleet.worlds[1].plan.seed = 11;
        again(fleet);
    }
}

/// Changes what rank 1 sends before the update of step 5.
fn tampered(change: impl Fn(&mut Value) + Send + Sync + 'static) -> Fleet {
    let mut fleet = Fleet::new(2, world);
    fleet.tamper = Arc::new(move |rank, text| {
        let mut message: Value = serde_json::from_str(text).ok()?;
        let is_it = message["step"] == 5 && message["point"] == "the update" && rank == 1;
        is_it.then(|| {
            change(&mut message);
            message.to_string()
        })
    });
    fleet
}

#[test]
fn ranks_that_disagree_end_with_the_step_the_rank_and_both_values() {
    let change_fact = |name: &'static str| {
        move |message: &mut Value| {
            let facts = message["facts"].as_array_mut().unwrap();
            let fact = facts.iter_mut().find(|fact| fact[0] == name).unwrap();
            fact[1] = "another".into();
        }
    };
    for name in [
        "the settings",
        "the interval",
        "the mixture",
        "the sequences",
        "trained tokens",
        "the last loss",
        "the last gradient norm",
    ] {
        let mut fleet = tampered(change_fact(name));
        let errors = errors(fleet.run());
        let expected = format!("ranks disagree at step 5 about {name}: another on rank 1, ");
        assert!(
            errors.iter().all(|error| error.contains(&expected)),
            "{errors:?}"
        );
        assert_eq!(saved(&fleet), 3);
        again(fleet);
    }
    let mut fleet = tampered(|message| message["step"] = 6.into());
    for error in errors(fleet.run()) {
        let expected = "ranks disagree at step 5: rank 1 is at the update of step 6, rank 0 at the update of step 5";
        assert!(error.contains(expected), "{error}");
    }
    let mut fleet =
        tampered(|message| message["content"]["batches"][0]["rows"]["start"] = 5.into());
    for error in errors(fleet.run()) {
        let expected =
            "ranks disagree at step 5: expected sequence 4 of the step next, but rank 1 has 5 to 6";
        assert!(error.contains(expected), "{error}");
    }
    let mut fleet = tampered(|message| *message = "nothing".into());
    for error in errors(fleet.run()) {
        assert!(
            error.contains("a message of step 5 at the update: "),
            "{error}"
        );
    }
}

#[test]
fn a_lost_rank_ends_the_others_without_a_save() {
    for place in ["accumulate", "update", "evaluate student", "snapshot"] {
        let mut fleet = Fleet::new(4, world);
        let hub: Arc<OnceLock<Arc<Hub>>> = Arc::default();
        let of_rank = hub.clone();
        fleet.worlds[2].hook = Arc::new(move |at, number| {
            // The micro-batches of a rank have the steps' numbers.
            if at == place && number >= 5 {
                of_rank.get().unwrap().lose(2);
            }
            Ok(())
        });
        let ended = fleet.run_with(|made| drop(hub.set(made.clone())));
        for (rank, error) in errors(ended).iter().enumerate() {
            assert!(
                error.starts_with(&format!("student of rank {rank} failed: ")),
                "{error}"
            );
            assert!(
                error.contains("the connection to rank 2 is lost"),
                "{error}"
            );
            assert!(error.ends_with(AGAIN), "{error}");
        }
        assert_eq!(saved(&fleet), 3, "{place}");
        again(fleet);
    }
}

/// Fails once, in this place on this rank.
fn failing(rank: usize, place: &'static str, at: u64, error: PortError) -> Fleet {
    let mut fleet = Fleet::new(2, || {
        let mut world = world();
        let live = saving_every(3);
        let mut settings = live.get(ddk_settings::Settings::clone);
        settings.training.micro_batch_size = 4;
        live.set(settings);
        world.plan.live = live;
        world
    });
    fleet.worlds[rank].hook = Arc::new(move |here, number| {
        if (here, number) == (place, at) {
            Err(error.clone())
        } else {
            Ok(())
        }
    });
    fleet
}

#[test]
fn a_rank_out_of_memory_records_the_change_and_ends() {
    for (rank, other) in [(1, 0), (0, 1)] {
        let message = "no room".to_owned();
        let during = Work::Train;
        let mut fleet = failing(
            rank,
            "accumulate",
            9,
            PortError::OutOfMemory { during, message },
        );
        let errors = errors(fleet.run());
        assert_eq!(
            errors[rank],
            format!("student of rank {rank} failed: no room{AGAIN}")
        );
        let lost = format!("the connection to rank {rank} is lost");
        assert!(errors[other].contains(&lost), "{errors:?}");
        let [change] = &overrides(fleet.first())[..] else {
            panic!("one change");
        };
        assert_eq!(
            (change.source, &change.set["training.micro_batch_size"]),
            (Source::Recovery, &2.into())
        );
        assert_eq!(saved(&fleet), 3);
        again(fleet);
    }
}

#[test]
fn a_rank_that_fails_in_any_worker_ends_all_without_a_save() {
    for (place, at) in [
        ("label", 9),
        ("update", 5),
        ("draw", 6),
        ("evaluate student", 5),
    ] {
        let mut fleet = failing(1, place, at, PortError::Other("broken".to_owned()));
        let (fail, snapshots) = (fleet.worlds[1].hook.clone(), Arc::new(AtomicU64::new(0)));
        let last = snapshots.clone();
        fleet.worlds[1].hook = Arc::new(move |here, number| {
            if here == "snapshot" {
                last.fetch_max(number, Ordering::Relaxed);
            }
            fail(here, number)
        });
        let errors = errors(fleet.run());
        assert!(
            errors[1].contains(" of rank 1 failed: broken"),
            "{errors:?}"
        );
        assert!(
            errors.iter().all(|error| error.ends_with(AGAIN)),
            "{errors:?}"
        );
        assert_eq!(saved(&fleet), 3, "{place}");
        // The other rank would not take part.
        assert_eq!(snapshots.load(Ordering::Relaxed), 3, "{place}");
        again(fleet);
    }
}

#[test]
fn a_panic_of_a_teacher_or_a_loader_stays_on_its_rank() {
    let expected = whole(1, world);
    for (place, at, worker) in [
        ("label", 9, "teacher-0"),
        ("read", 1003, "loader-b"),
        ("evaluate teacher", 0, "teacher-0"),
    ] {
        let rank = usize::from(place != "evaluate teacher");
        let mut fleet = Fleet::new(2, world);
        let failed = OnceLock::new();
        fleet.worlds[rank].hook = Arc::new(move |here, number| {
            assert!(
                (here, number) != (place, at) || failed.set(()).is_err(),
                "on purpose"
            );
            Ok(())
        });
        let ended = fleet.run();
        assert!(record(&fleet, ended) == expected, "{place}");
        let of = |rank: usize| {
            let events = fleet.worlds[rank].observer.events.lock().unwrap();
            let restarted = events
                .iter()
                .filter(|event| event.kind == EventKind::Restarted);
            restarted
                .map(|event| event.message.clone())
                .collect::<Vec<_>>()
        };
        assert!(of(rank)[0].starts_with(&format!("{worker} is restarted: ")));
        assert!(of(1 - rank).is_empty());
    }
}

#[test]
fn a_panic_of_a_student_ends_all_ranks() {
    let mut fleet = Fleet::new(2, world);
    fleet.worlds[1].hook = Arc::new(|place, number| {
        assert!((place, number) != ("accumulate", 9), "on purpose");
        Ok(())
    });
    let errors = errors(fleet.run());
    assert_eq!(
        errors[1],
        format!("student of rank 1 failed: it panicked: on purpose{AGAIN}")
    );
    assert!(
        errors[0].contains("the connection to rank 1 is lost"),
        "{errors:?}"
    );
    assert!(overrides(fleet.first()).is_empty());
    again(fleet);
}

/// All ranks find that training went wrong; the change is recorded once. Started again, they skip the same steps as a
/// single process that rewinds.
#[test]
fn a_roll_back_is_recorded_once_and_takes_place_at_the_next_start() {
    let make = || {
        let mut world = world();
        (
            world.plan.recovery.max_consecutive_skips,
            world.plan.recovery.max_rollbacks,
        ) = (2, 1);
        world.hook = Arc::new(|place, step| {
            if place == "no update" && [5, 6].contains(&step) {
                Err(PortError::Other("on purpose".to_owned()))
            } else {
                Ok(())
            }
        });
        world
    };
    let mut fleet = Fleet::new(2, make);
    for error in errors(fleet.run()) {
        assert!(
            error.contains("steps 5 to 6: no update could be made"),
            "{error}"
        );
        assert!(error.ends_with(AGAIN), "{error}");
    }
    assert_eq!(saved(&fleet), 3);
    let [change] = &overrides(fleet.first())[..] else {
        panic!("one change");
    };
    assert_eq!(
        (change.source, &change.skip_steps[..]),
        (Source::Recovery, &[5, 6][..])
    );
    let ended = fleet.run();
    assert!(record(&fleet, ended) == whole(1, make));
}

#[test]
fn a_last_save_that_fails_ends_all_ranks() {
    let mut fleet = Fleet::new(4, world);
    fleet.worlds[0].full_disk = vec![17];
    for (rank, error) in errors(fleet.run()).iter().enumerate() {
        let expected = format!("student of rank {rank} failed: cannot save the last checkpoint");
        assert!(error.starts_with(&expected), "{error}");
    }
    again(fleet);
    // Saves that fail on the way are events, as on one rank.
    let mut fleet = Fleet::new(2, world);
    fleet.worlds[0].full_disk = vec![6, 9];
    let ended = fleet.run();
    assert!(record(&fleet, ended) == whole(1, world));
}
