//! What needs no process of its own: a store, and groups of one rank or of threads.

use std::{
    cell::Cell,
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use ddk_distributed::{DistributedError, Group, Store};
use tch::{Device, Kind, Tensor};

use crate::ranks::{free_port, world};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(700);

#[test]
fn a_key_is_absent_until_it_is_set() {
    let store = Store::connect(&world(0, 1, free_port()), LONG).unwrap();
    assert_eq!(store.get("key").unwrap(), None);
    store.set("key", b"one").unwrap();
    store.set("empty", b"").unwrap();
    store.set("key", &[0, 255, 10]).unwrap();
    assert_eq!(store.get("key").unwrap(), Some(vec![0, 255, 10]));
    assert_eq!(store.get("empty").unwrap(), Some(Vec::new()));
    assert_eq!(store.get("ke").unwrap(), None);
    let error = store.set("a\0b", b"").unwrap_err().to_string();
    assert!(error.contains("NUL"), "{error}");
}

#[test]
fn a_wait_ends_with_the_key_or_when_it_is_told_to() {
    let port = free_port();
    let store = Store::connect(&world(0, 2, port), LONG).unwrap();
    let polls = Cell::new(0);
    let stop_at_third = || {
        polls.set(polls.get() + 1);
        polls.get() == 3
    };
    assert_eq!(store.wait("late", &stop_at_third).unwrap(), None);
    assert_eq!(polls.get(), 3);
    let other = Store::connect(&world(1, 2, port), LONG).unwrap();
    let value = thread::scope(|scope| {
        let waiting = scope.spawn(|| other.wait("late", &|| false).unwrap());
        store.set("late", b"here").unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(value.as_deref(), Some(&b"here"[..]));
}

#[test]
fn a_store_that_nobody_serves_is_an_error_after_the_timeout() {
    let port = free_port();
    let start = Instant::now();
    let error = Store::connect(&world(1, 2, port), SHORT).unwrap_err();
    let time = start.elapsed();
    assert!(
        time >= SHORT && time < SHORT + Duration::from_secs(5),
        "{time:?}"
    );
    let message = error.to_string();
    let expected = format!(
        "cannot connect to the store at 127.0.0.1:{port}: Connection refused (os error 111) (tried for 0.7 s): check \
         that rank 0 runs"
    );
    assert!(message.starts_with(&expected), "{message}");
    let mut nowhere = world(1, 2, port);
    nowhere.host = "no-such-host.invalid".to_owned();
    let message = Store::connect(&nowhere, SHORT).unwrap_err().to_string();
    assert!(
        message.contains("no-such-host.invalid:") && message.contains("lookup"),
        "{message}"
    );
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = Store::connect(&world(0, 1, port), SHORT).unwrap_err();
    let message = error.to_string();
    assert!(
        message.starts_with(&format!("cannot serve the store at 127.0.0.1:{port}: ")),
        "{message}"
    );
    assert!(message.contains("address already in use"), "{message}");
    assert!(
        message.ends_with("set MASTER_PORT to a free port"),
        "{message}"
    );
}

#[test]
fn a_store_that_ends_is_an_error() {
    let port = free_port();
    let served = Store::connect(&world(0, 2, port), LONG).unwrap();
    let client = Store::connect(&world(1, 2, port), LONG).unwrap();
    client.set("key", b"value").unwrap();
    drop(served);
    let error = client.wait("other", &|| false).unwrap_err();
    assert!(matches!(error, DistributedError::Store { .. }), "{error:?}");
    assert!(error.to_string().contains("probably gone"), "{error}");
}

#[test]
fn the_missing_ranks_are_named() {
    let world = world(1, 4, free_port());
    let mut server = world.clone();
    server.rank = 0;
    let store = Store::connect(&server, LONG).unwrap();
    let start = Instant::now();
    let error = Group::connect(&store, &world, "lonely", Device::Cpu, SHORT).unwrap_err();
    assert!(start.elapsed() >= SHORT);
    let message = error.to_string();
    let expected =
        "connecting the group \"lonely\" did not finish in 0.7 s: ranks 0, 2, 3 did not come";
    assert!(message.starts_with(expected), "{message}");
}

/// Runs a function on each of two ranks, which are threads of this process.
fn two_ranks<T: Send>(timeout: Duration, run: impl Fn(&Group) -> T + Sync) -> Vec<T> {
    let port = free_port();
    let run = &run;
    thread::scope(|scope| {
        let rank = |rank| {
            scope.spawn(move || {
                let world = world(rank, 2, port);
                let store = Store::connect(&world, LONG).unwrap();
                let group = Group::connect(&store, &world, "two", Device::Cpu, LONG).unwrap();
                drop(group);
                let group = Group::connect(&store, &world, "two", Device::Cpu, timeout).unwrap();
                run(&group)
            })
        };
        let ranks = [rank(0), rank(1)];
        ranks.map(|rank| rank.join().unwrap()).into()
    })
}

#[test]
fn ranks_that_disagree_time_out() {
    let options = (Kind::Float, Device::Cpu);
    let operations = two_ranks(SHORT, |group| match group.rank() {
        0 => group.exchange(&[0; 8]).map(drop),
        _ => group.all_gather(
            &mut Tensor::zeros([4], options),
            &Tensor::ones([2], options),
        ),
    });
    let sizes = two_ranks(SHORT, |group| {
        let count = 100 + 50 * group.rank() as i64;
        let input = Tensor::ones([count], options);
        group.all_gather(&mut Tensor::zeros([2 * count], options), &input)
    });
    for results in [operations, sizes] {
        let errors: Vec<DistributedError> = results.into_iter().map(Result::unwrap_err).collect();
        let timed_out =
            |error: &DistributedError| matches!(error, DistributedError::TimedOut { .. });
        assert!(errors.iter().any(timed_out), "{errors:?}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_refused_before_anything_is_sent() {
    let results = two_ranks(LONG, |group| {
        let options = (Kind::Float, Device::Cpu);
        let zeros = |shape: &[i64]| Tensor::zeros(shape, options);
        let whole = zeros(&[8]);
        let double = zeros(&[8]).to_kind(Kind::Double);
        let strided = zeros(&[8, 2]).select(1, 0);
        let message = |result: Result<(), DistributedError>| match result {
            Err(DistributedError::Invalid(message)) => message,
            other => panic!("{other:?}"),
        };
        let to_all = |mut out: Tensor, input: &Tensor| message(group.all_to_all(&mut out, input));
        let gather = |mut out: Tensor, input: &Tensor| message(group.all_gather(&mut out, input));
        let messages = [
            to_all(zeros(&[7]), &zeros(&[7])),
            to_all(zeros(&[6]), &whole),
            to_all(double, &whole),
            to_all(zeros(&[2, 4]), &whole),
            to_all(zeros(&[8]), &strided),
            to_all(whole.shallow_clone(), &whole),
            gather(zeros(&[8]), &whole),
            gather(whole.shallow_clone(), &whole.narrow(0, 4, 4)),
        ];
        // Nothing was sent, so the group still works.
        let mut out = zeros(&[8]);
        group.all_to_all(&mut out, &(whole + 1.0)).unwrap();
        assert_eq!(out.double_value(&[7]), 1.0);
        messages
    });
    let start = "of the group \"two\": ";
    let expected = [
        "`out` has 7 elements and `input` 7, expected the same multiple of 2 ranks",
        "`out` has 6 elements and `input` 8, expected the same multiple of 2 ranks",
        "`out` has dtype Double and `input` Float, expected the same",
        "`out` has shape [2, 4], is contiguous and on Cpu, expected one dimension, contiguous, on Cpu",
        "`input` has shape [8], is not contiguous and on Cpu, expected one dimension, contiguous, on Cpu",
        "`out` and `input` share memory, expected separate tensors",
        "`out` has 8 elements, expected 2 ranks times the 8 of `input`",
        "`out` and `input` share memory, expected separate tensors",
    ];
    for messages in results {
        for (message, expected) in messages.iter().zip(expected) {
            let (_, message) = message.split_once(start).unwrap();
            assert_eq!(message, expected);
        }
    }
}

#[test]
fn a_group_needs_a_plain_name_a_rank_and_a_device_that_it_knows() {
    let world = world(0, 1, free_port());
    let store = Store::connect(&world, LONG).unwrap();
    for name in ["", "a/b", "a\0"] {
        let error = Group::connect(&store, &world, name, Device::Cpu, LONG).unwrap_err();
        assert!(
            matches!(error, DistributedError::Invalid(_)),
            "{name:?}: {error}"
        );
    }
    let mut outside = world.clone();
    outside.rank = 1;
    let error = Group::connect(&store, &outside, "a", Device::Cpu, LONG).unwrap_err();
    assert!(
        error.to_string().contains("expected a rank from 0 to 0"),
        "{error}"
    );
    let error = Group::connect(&store, &world, "a", Device::Mps, LONG).unwrap_err();
    assert!(error.to_string().contains("Mps"), "{error}");
}

/// Which of the other rank's threads a message meets is open, but none is torn.
#[test]
fn two_threads_of_a_rank_take_turns_in_one_group() {
    two_ranks(LONG, |group| {
        thread::scope(|scope| {
            for text in ["a", "longer"] {
                scope.spawn(move || {
                    for round in 0..50 {
                        let message = text.repeat(round % 7);
                        let all = group.exchange(message.as_bytes()).unwrap();
                        assert_eq!(all[group.rank()], message.as_bytes());
                        let other = String::from_utf8(all[1 - group.rank()].clone()).unwrap();
                        let rest = other.replace("longer", "").replace('a', "");
                        assert_eq!(rest, "", "{other}");
                    }
                });
            }
        });
    });
}
