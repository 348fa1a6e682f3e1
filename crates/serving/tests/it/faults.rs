//! Random faults: rows are never lost, doubled, or in another order.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ddk_serving::{ServerOptions, TeacherServer};
use serde_json::json;

use crate::{
    stub::{Reply, Request, Stub, pooled, respond_json, standard},
    watch::{Seen, ask, options},
};

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// One of the faults that may pass.
fn fault(request: &Request, random: &mut Random) -> Reply {
    match random.below(5) {
        0 => Reply::Close(Vec::new()),
        1 => Reply::Send(respond_json("503 Unavailable", &json!({"message": "busy"}))),
        2 => Reply::Send(respond_json(
            "429 Too Many Requests",
            &json!({"message": "busy"}),
        )),
        3 => Reply::Never,
        _ => {
            let bytes = pooled(request);
            // Without the last chunk, which is empty: with a part of it, the answer counts as complete.
            let kept = random.below(bytes.len() as u64 - 5) as usize;
            Reply::Close(bytes[..kept].to_vec())
        }
    }
}

fn run(seed: u64) {
    let random = Mutex::new(Random(seed));
    let faults = Arc::new(AtomicUsize::new(0));
    let count = faults.clone();
    let stub = Stub::start(standard(move |request| {
        let mut random = random.lock().unwrap();
        if random.below(3) > 0 {
            return None;
        }
        count.fetch_add(1, Ordering::SeqCst);
        Some(fault(request, &mut random))
    }));
    let mut random = Random(!seed);
    let mut server = TeacherServer::new(ServerOptions {
        requests_in_flight: 1 + random.below(5) as usize,
        // Long enough for a loaded machine to answer.
        request_timeout: Duration::from_secs(3),
        ..options(&stub.address)
    })
    .unwrap();
    let seen = Seen::default();
    let mut answered = 0;
    for call in 0..3 {
        let before = stub.pooled().len();
        let sequences: Vec<Vec<u32>> = (0..1 + random.below(9) as u32)
            .map(|index| vec![100 * call + index; random.below(60) as usize])
            .collect();
        ask(&mut server, &sequences, &seen);
        let asked = &stub.pooled()[before..];
        let requests: BTreeSet<String> = asked
            .iter()
            .map(|request| request.body.to_string())
            .collect();
        answered += requests.len();
    }
    let (failed, retries) = (faults.load(Ordering::SeqCst), seen.retries.get());
    assert!(
        retries >= failed,
        "seed {seed}: {retries} retries of {failed}"
    );
    assert_eq!(seen.responses.get(), answered, "seed {seed}");
    assert_eq!(
        seen.back.borrow().len(),
        seen.away.borrow().len(),
        "seed {seed}"
    );
}

#[test]
fn rows_survive_random_faults() {
    let scale = std::env::var("DDK_TEST_SCALE").map_or(1, |scale| scale.parse().unwrap());
    // Most of the time is pauses, so the seeds run at once, in groups.
    for group in 0..scale {
        let seeds = 16 * group..16 * (group + 1);
        thread::scope(|scope| {
            for seed in seeds {
                scope.spawn(move || run(seed));
            }
        });
    }
}
