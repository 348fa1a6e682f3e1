//! Several real processes that find and use each other, and what they notice when one is gone.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod in_process;
mod listening;
mod programs;
mod ranks;

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use ddk_distributed::Store;

use crate::ranks::{Ranks, free_port, world};

/// Runs a program to its end, and checks the last line of each rank.
fn all_say(program: &str, size: usize, expected: &str) {
    let mut ranks = Ranks::start(program, size, &[]);
    assert_eq!(
        ranks.lines(),
        vec![expected; size],
        "{program}, {size} ranks"
    );
    ranks.finish();
}

#[test]
fn messages_of_any_length_reach_all_ranks() {
    for size in [1, 2, 4] {
        all_say("messages", size, "all messages arrived");
    }
}

#[test]
fn tensors_arrive_in_their_places() {
    for size in [1, 2, 4] {
        all_say("tensors", size, "all tensors are right");
    }
}

#[test]
fn a_sum_by_a_fixed_tree_has_the_same_bits_for_any_number_of_ranks() {
    let mut trees = Vec::new();
    let mut chains = Vec::new();
    for size in [1, 2, 4] {
        let mut ranks = Ranks::start("sums", size, &[]);
        let lines = ranks.lines();
        assert_eq!(lines, vec![lines[0].clone(); size], "ranks differ");
        let (tree, chain) = lines[0].split_once(' ').unwrap();
        trees.push(tree.to_owned());
        chains.push(chain.to_owned());
        ranks.finish();
    }
    assert_eq!(trees, vec![trees[0].clone(); 3]);
    // The numbers are such that the order matters.
    assert_ne!(chains[0], chains[1]);
}

#[test]
fn two_threads_use_two_groups_at_once() {
    all_say("threads", 2, "both groups are right");
    all_say("threads", 3, "both groups are right");
}

#[test]
fn a_name_can_be_used_again() {
    all_say("names", 2, "all rounds are right");
}

#[test]
fn all_notice_soon_that_a_rank_was_killed() {
    for (size, victim) in [(2, 0), (4, 2)] {
        let mut ranks = Ranks::start("endless", size, &[("DDK_TEST_TIMEOUT", "60000")]);
        assert_eq!(ranks.lines(), vec!["ready"; size]);
        let start = Instant::now();
        ranks.rank(victim).signal(libc::SIGKILL);
        for rank in (0..size).filter(|rank| *rank != victim) {
            let line = ranks.rank(rank).line();
            assert!(line.starts_with("Lost: "), "{line}");
            assert!(
                line.contains("of the group \"endless\" failed because another process is gone"),
                "{line}"
            );
            assert!(!line.contains(".cc:"), "{line}");
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{:?}",
                start.elapsed()
            );
            assert_eq!(ranks.rank(rank).line(), "again: true");
        }
    }
}

#[test]
fn a_rank_that_stops_is_a_timeout() {
    for (size, victim) in [(2, 0), (3, 2)] {
        let mut ranks = Ranks::start("endless", size, &[("DDK_TEST_TIMEOUT", "2000")]);
        assert_eq!(ranks.lines(), vec!["ready"; size]);
        let start = Instant::now();
        ranks.rank(victim).signal(libc::SIGSTOP);
        let others: Vec<usize> = (0..size).filter(|rank| *rank != victim).collect();
        let lines: Vec<String> = others.iter().map(|rank| ranks.rank(*rank).line()).collect();
        let time = start.elapsed();
        assert!((1.9..8.0).contains(&time.as_secs_f64()), "{time:?}");
        // The first to notice closes its connections, so another may report that.
        let timed_out = lines.iter().filter(|line| line.starts_with("TimedOut: "));
        let lost = lines
            .iter()
            .filter(|line| line.starts_with("Lost: "))
            .count();
        let timed_out: Vec<&String> = timed_out.collect();
        assert!(
            !timed_out.is_empty() && timed_out.len() + lost == others.len(),
            "{lines:?}"
        );
        assert!(timed_out[0].contains("did not finish in 2 s"), "{lines:?}");
        for rank in others {
            assert_eq!(ranks.rank(rank).line(), "again: true");
        }
    }
}

/// The address by which this machine would reach others, if it has one.
fn other_address() -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Sends nothing. The address is one of those for documentation.
    socket.connect("198.51.100.1:9").ok()?;
    let own = socket.local_addr().unwrap().ip();
    (!own.is_loopback()).then(|| own.to_string())
}

#[test]
fn a_group_listens_where_the_store_is_reached_or_where_the_environment_says() {
    let listen = |variables: &[(&str, &str)]| {
        let mut ranks = Ranks::start("listens", 2, variables);
        let lines = ranks.lines();
        assert_eq!(lines[0], lines[1]);
        ranks.finish();
        lines[0].clone()
    };
    assert_eq!(listen(&[]), "127.0.0.1");
    if let Some(other) = other_address() {
        assert_eq!(listen(&[("MASTER_ADDR", &other)]), other);
        let loopback = [("MASTER_ADDR", &*other), ("GLOO_SOCKET_IFNAME", "lo")];
        assert_eq!(listen(&loopback), "127.0.0.1");
    }
    let message = listen(&[("GLOO_SOCKET_IFNAME", "none0")]);
    let expected = "connecting the group \"listens\": Gloo cannot listen on none0: ";
    assert!(message.starts_with(expected), "{message}");
    assert!(message.contains("set GLOO_SOCKET_IFNAME"), "{message}");
}

#[test]
fn attempts_over_one_store_do_not_mix() {
    // This process stands for torchrun's agent, whose store outlives the attempts.
    let port = free_port();
    let _agent = Store::connect(&world(0, 1, port), Duration::from_secs(10)).unwrap();
    let port = port.to_string();
    for attempt in ["0", "1"] {
        let variables = [
            ("MASTER_PORT", &*port),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", attempt),
        ];
        let mut ranks = Ranks::start("attempts", 2, &variables);
        let expected = format!("attempt {attempt}, found a key: false");
        assert_eq!(ranks.lines(), vec![expected; 2]);
        // As torchrun's SIGKILL ends an attempt, in the middle of what it did.
        for rank in 0..2 {
            ranks.rank(rank).signal(libc::SIGKILL);
        }
    }
}
