//! What the ranks do. A rank that fails an assertion ends with an error, which the test notices.

use std::{collections::BTreeSet, env, thread, time::Duration};

use ddk_distributed::{DistributedError, Group, Store, World};
use tch::{Device, Kind, Tensor};

use crate::ranks::{MARK, PROGRAM};

const LONG: Duration = Duration::from_secs(60);

/// Not a test by itself: the program of each process that a test starts.
#[test]
fn program_of_a_rank() {
    let Ok(program) = env::var(PROGRAM) else {
        return;
    };
    // A rank that hangs must end at some time, and with it the test.
    // SAFETY: a plain system call.
    unsafe { libc::alarm(120) };
    let world = World::from_env().unwrap().unwrap();
    tch::set_num_threads(1);
    let store = Store::connect(&world, LONG).unwrap();
    match &*program {
        "messages" => messages(&store, &world),
        "tensors" => tensors(&store, &world),
        "sums" => sums(&store, &world),
        "threads" => threads(&store, &world),
        "names" => names(&store, &world),
        "attempts" => attempts(&store, &world),
        "listens" => listens(&store, &world),
        "endless" => endless(&store, &world),
        other => panic!("no program {other}"),
    }
}

fn say(text: &str) {
    println!("{MARK}{text}");
}

fn connect(store: &Store, world: &World, name: &str) -> Group {
    Group::connect(store, world, name, Device::Cpu, LONG).unwrap()
}

/// Rank 0 may serve the store, so it ends last.
fn leave(group: &Group) {
    group.exchange(&[]).unwrap();
}

fn messages(store: &Store, world: &World) {
    let group = connect(store, world, "messages");
    let lengths = [0, 5_000_000, 1, 777];
    let message = |rank: usize, round: usize| -> Vec<u8> {
        let length = lengths[(rank + round) % lengths.len()];
        (0..length)
            .map(|at| (at * 7 + rank * 31 + round) as u8)
            .collect()
    };
    for round in 0..5 {
        let all = group.exchange(&message(world.rank, round)).unwrap();
        let expected: Vec<Vec<u8>> = (0..world.size).map(|rank| message(rank, round)).collect();
        assert!(all == expected, "round {round}");
    }
    let none = group.exchange(&[]).unwrap();
    assert_eq!(none, vec![Vec::<u8>::new(); world.size]);
    // A key that another process sets, possibly while this one waits.
    if world.rank + 1 == world.size {
        store.set("done", b"yes\0").unwrap();
    }
    if world.rank == 0 {
        let done = store.wait("done", &|| false).unwrap();
        assert_eq!(done.as_deref(), Some(&b"yes\0"[..]));
    }
    say("all messages arrived");
    leave(&group);
}

fn tensors(store: &Store, world: &World) {
    let group = connect(store, world, "tensors");
    let (rank, size) = (world.rank as i64, world.size as i64);
    for (kind, part) in [
        (Kind::Float, 1 << 18),
        (Kind::Double, 1),
        (Kind::BFloat16, 3),
        (Kind::Int64, 1000),
        (Kind::Bool, 5),
        (Kind::Float, 0),
    ] {
        let options = (Kind::Int64, Device::Cpu);
        // Small numbers, which each dtype can hold.
        let sent = |from: i64| (Tensor::arange(size * part, options) + from * 3).remainder(101);
        let whole = sent(rank).to_kind(kind);
        let mut out = whole.zeros_like();
        group.all_to_all(&mut out, &whole).unwrap();
        let parts: Vec<Tensor> = (0..size)
            .map(|from| sent(from).narrow(0, rank * part, part))
            .collect();
        assert_eq!(
            out,
            Tensor::cat(&parts, 0).to_kind(kind),
            "all_to_all of {kind:?}"
        );

        let input = sent(rank).narrow(0, 0, part).to_kind(kind);
        group.all_gather(&mut out, &input).unwrap();
        let parts: Vec<Tensor> = (0..size)
            .map(|from| sent(from).narrow(0, 0, part))
            .collect();
        assert_eq!(
            out,
            Tensor::cat(&parts, 0).to_kind(kind),
            "all_gather of {kind:?}"
        );
    }
    say("all tensors are right");
    leave(&group);
}

/// A gradient whose sum depends on the order of additions: its numbers differ in magnitude.
fn gradient(count: i64, position: i64) -> Tensor {
    let at = Tensor::arange(count, (Kind::Double, Device::Cpu));
    let scale = 10_f64.powi((position % 5) as i32 - 2);
    ((at * 0.37 + position as f64 * 1.7).sin() * scale).to_kind(Kind::Float)
}

/// The sum of parts by a binary tree, whose shape depends only on their number.
fn tree(parts: &[Tensor]) -> Tensor {
    match parts {
        [part] => part.shallow_clone(),
        _ => {
            let (left, right) = parts.split_at(parts.len() / 2);
            tree(left) + tree(right)
        }
    }
}

fn chain(parts: &[Tensor]) -> Tensor {
    let first = parts[0].shallow_clone();
    parts[1..].iter().fold(first, |sum, part| sum + part)
}

fn hash(tensor: &Tensor) -> String {
    let numbers = Vec::<f32>::try_from(tensor).unwrap();
    let hash = numbers
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, number| {
            (hash ^ u64::from(number.to_bits())).wrapping_mul(0x100_0000_01b3)
        });
    format!("{hash:016x}")
}

/// Adds the gradients of eight positions, which the ranks share equally.
fn sums(store: &Store, world: &World) {
    let group = connect(store, world, "sums");
    let (count, positions) = (1 << 16, 8);
    let each = positions / world.size as i64;
    let first = world.rank as i64 * each;
    let mine: Vec<Tensor> = (first..first + each)
        .map(|at| gradient(count, at))
        .collect();
    let total = |partial: Tensor, add: fn(&[Tensor]) -> Tensor| {
        let mut slices = partial.zeros_like();
        group.all_to_all(&mut slices, &partial).unwrap();
        let slice = add(&slices.chunk(world.size as i64, 0));
        let mut sum = partial.zeros_like();
        group.all_gather(&mut sum, &slice).unwrap();
        hash(&sum)
    };
    say(&format!(
        "{} {}",
        total(tree(&mine), tree),
        total(chain(&mine), chain)
    ));
    leave(&group);
}

/// Two threads with a group each, which they connect and use at the same time.
fn threads(store: &Store, world: &World) {
    thread::scope(|scope| {
        for name in ["first", "second"] {
            scope.spawn(move || {
                let group = connect(store, world, name);
                let mut out = Tensor::zeros([world.size as i64], (Kind::Int64, Device::Cpu));
                for round in 0..200_i64 {
                    let text = format!("{name} {round}");
                    let all = group.exchange(text.as_bytes()).unwrap();
                    assert_eq!(all, vec![text.into_bytes(); world.size]);
                    let number = round * 10 + name.len() as i64;
                    group
                        .all_gather(&mut out, &Tensor::from_slice(&[number]))
                        .unwrap();
                    let numbers = Vec::<i64>::try_from(&out).unwrap();
                    assert_eq!(numbers, vec![number; world.size]);
                }
                leave(&group);
            });
        }
    });
    say("both groups are right");
    leave(&connect(store, world, "end"));
}

/// A name is used again after its group is gone.
fn names(store: &Store, world: &World) {
    for round in 0..3_u8 {
        let group = connect(store, world, "again");
        let all = group.exchange(&[round]).unwrap();
        assert_eq!(all, vec![vec![round]; world.size]);
    }
    say("all rounds are right");
    leave(&connect(store, world, "end"));
}

/// Says what it finds of an earlier attempt, and stays in a group until it is killed.
fn attempts(store: &Store, world: &World) {
    let key = format!("rank {}", world.rank);
    let found = store.get(&key).unwrap().is_some();
    store.set(&key, b"was here").unwrap();
    let group = connect(store, world, "group");
    let text = format!("attempt {}", world.attempt);
    let all = group.exchange(text.as_bytes()).unwrap();
    assert_eq!(all, vec![text.clone().into_bytes(); world.size]);
    say(&format!("{text}, found a key: {found}"));
    stay();
}

/// Says at which addresses its group listens, or why it cannot.
fn listens(store: &Store, world: &World) {
    match Group::connect(store, world, "listens", Device::Cpu, LONG) {
        Ok(group) => {
            let addresses = crate::listening::addresses();
            let own = addresses
                .into_iter()
                .filter(|address| address.port() != world.port);
            let own: BTreeSet<String> = own.map(|address| address.ip().to_string()).collect();
            say(&own.into_iter().collect::<Vec<_>>().join(" "));
            leave(&group);
        }
        Err(error) => say(&error.to_string()),
    }
}

/// Transfers until it fails. The timeout in milliseconds is in the environment.
fn endless(store: &Store, world: &World) {
    let timeout: u64 = env::var("DDK_TEST_TIMEOUT").unwrap().parse().unwrap();
    let timeout = Duration::from_millis(timeout);
    let group = Group::connect(store, world, "endless", Device::Cpu, timeout).unwrap();
    let whole = Tensor::ones([(world.size as i64) << 18], (Kind::Float, Device::Cpu));
    let part = whole.narrow(0, 0, 1 << 18);
    let mut out = whole.zeros_like();
    let mut round = || -> Result<(), DistributedError> {
        group.all_to_all(&mut out, &whole)?;
        group.all_gather(&mut out, &part)?;
        group.exchange(&vec![1; 100_000 * world.rank]).map(drop)
    };
    round().unwrap();
    say("ready");
    let error = loop {
        if let Err(error) = round() {
            break error;
        }
    };
    let kind = match error {
        DistributedError::Lost { .. } => "Lost",
        DistributedError::TimedOut { .. } => "TimedOut",
        _ => "other",
    };
    say(&format!("{kind}: {error}"));
    // The group stays failed, and says so at once.
    let again = group.exchange(b"more").unwrap_err();
    say(&format!(
        "again: {}",
        again.to_string() == error.to_string()
    ));
    stay();
}

/// Waits until the test ends: it holds the other end of the input.
fn stay() {
    let _ = std::io::read_to_string(std::io::stdin());
}
