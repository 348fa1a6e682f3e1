//! Overlap changes speed, never results.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex},
};

use ddk_actors::{End, StopReason};
use ddk_mixture::interval_order;

use crate::fakes::{ROWS, World, dawdle};

#[tokio::test]
async fn depths_lanes_and_delays_change_nothing() {
    let reference = World::new();
    let outcome = reference.run().await.unwrap().unwrap();
    assert_eq!(outcome.end, End::Finished(StopReason::MaxSteps));
    assert_eq!((outcome.step, outcome.intervals), (17, 4));
    let reference = reference.trajectory();
    let scale: u64 = std::env::var("DDK_TEST_SCALE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    for seed in 0..10 * scale {
        for depth in [0, 1, 2, 8] {
            let mut world = World::new();
            world.plan.queue_depth = depth;
            world.plan.replicas = 1 + (seed % 3) as usize;
            world.hook = Arc::new(move |place, number| {
                dawdle(seed * 77 + place.len() as u64 * 13 + number);
                Ok(())
            });
            world.run().await.unwrap();
            assert!(
                world.trajectory() == reference,
                "depth {depth}, seed {seed}"
            );
        }
    }
}

#[tokio::test]
async fn each_step_consumes_the_plans_next_rows_by_its_own_mixture() {
    let world = World::new();
    world.run().await.unwrap();
    let samples = world.lines("samples.jsonl");
    assert_eq!(samples.len(), 17 * 6);
    let names = ["a", "b", "c"];
    // Each domain's sequences come epoch by epoch, each sequence once per epoch.
    for (domain, name) in names.iter().enumerate() {
        let seen: Vec<(u64, u64)> = samples
            .iter()
            .filter(|sample| sample["domain"] == **name)
            .map(|sample| {
                (
                    sample["epoch"].as_u64().unwrap(),
                    sample["sequence"].as_u64().unwrap(),
                )
            })
            .collect();
        for (index, (pass, row)) in seen.iter().enumerate() {
            let (index, rows) = (index as u64, ROWS[domain]);
            assert_eq!(*pass, index / rows);
            let order = ddk_order::Permutation::new(rows, 1, "fake", &[domain as u64, *pass]);
            assert_eq!(*row, order.at(index % rows));
        }
    }
    // An interval's domains are its counts, shuffled by (seed, interval). A shorter last interval has scaled counts.
    let lines = world.lines("mixture.jsonl");
    for interval in 0..4_u64 {
        let drawn = lines
            .iter()
            .find(|line| line["interval"] == interval && line["drawn"].is_object())
            .unwrap();
        let counts: Vec<u64> = names
            .iter()
            .map(|name| drawn["drawn"][name]["sequences"].as_u64().unwrap())
            .collect();
        assert_eq!(
            counts.iter().sum::<u64>(),
            if interval == 3 { 12 } else { 30 }
        );
        let expected = interval_order(&counts, 11, interval);
        let got: Vec<u16> = samples
            .iter()
            .filter(|sample| sample["interval"] == interval)
            .map(|sample| {
                names
                    .iter()
                    .position(|name| sample["domain"] == **name)
                    .unwrap() as u16
            })
            .collect();
        assert_eq!(got, expected);
    }
    for step in world.lines("run.jsonl") {
        assert_eq!(step["interval"], (step["step"].as_u64().unwrap() - 1) / 5);
    }
    // A step's tokens are the tokens of its sequences.
    let mut tokens: BTreeMap<u64, u64> = BTreeMap::new();
    for sample in &samples {
        let count: u64 = sample["spans"]
            .as_array()
            .unwrap()
            .iter()
            .map(|span| span["tokens"].as_u64().unwrap())
            .sum();
        *tokens.entry(sample["step"].as_u64().unwrap()).or_default() += count;
    }
    for step in world.lines("run.jsonl") {
        assert_eq!(
            tokens[&step["step"].as_u64().unwrap()],
            step["tokens"].as_u64().unwrap()
        );
    }
}

/// The student does not return from its first micro-batch until the teacher has begun the second. Without overlap this
/// would hang forever.
#[tokio::test]
async fn the_teacher_labels_the_next_batch_while_the_student_is_busy() {
    for depth in [0, 2] {
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let mut world = World::new();
        world.plan.queue_depth = depth;
        world.hook = Arc::new(move |place, number| {
            let (open, changed) = &*gate;
            match (place, number) {
                ("label", 1) => {
                    *open.lock().unwrap() = true;
                    changed.notify_all();
                }
                ("accumulate", 0) => {
                    let guard = open.lock().unwrap();
                    drop(changed.wait_while(guard, |open| !*open).unwrap());
                }
                _ => {}
            }
            Ok(())
        });
        world.run().await.unwrap();
    }
}

#[tokio::test]
async fn runs_end_by_tokens_and_by_ratio_as_defined() {
    let mut world = World::new();
    world.plan.max_tokens = Some(150);
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!(outcome.end, End::Finished(StopReason::MaxTokens));
    let tokens: Vec<u64> = world
        .lines("run.jsonl")
        .iter()
        .map(|line| line["tokens"].as_u64().unwrap())
        .collect();
    let all: u64 = tokens.iter().sum();
    assert!(
        all >= 150 && all - tokens.last().unwrap() < 150,
        "the step that reaches the budget is the last: {tokens:?}"
    );

    let mut world = World::new();
    world.plan.target_gap = Some(10.0_f64.ln());
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!(
        (outcome.end, outcome.step),
        (End::Finished(StopReason::TargetGap), 5)
    );
    assert!(outcome.after.is_some());
}

#[tokio::test]
async fn a_limit_on_passes_ends_a_small_domain_and_then_the_run() {
    let mut world = World::new();
    world.plan.max_steps = None;
    world.plan.max_passes = Some(2.0);
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!(outcome.end, End::Finished(StopReason::MaxEpochs));
    let samples = world.lines("samples.jsonl");
    assert!(
        samples
            .iter()
            .all(|sample| sample["epoch"].as_u64().unwrap() < 2)
    );
    // All sequences of both epochs, as far as they fill steps: the last interval is as short as necessary.
    let all = 2 * ROWS.iter().sum::<u64>();
    let per_step = world.plan.sequences_per_step;
    assert_eq!(samples.len() as u64, all - all % per_step);
}

#[tokio::test]
async fn perplexities_that_are_not_finite_leave_the_mixture_as_it_was() {
    let mut world = World::new();
    world.hook = Arc::new(|place, step| match (place, step) {
        ("not finite", 10) => Err(ddk_actors::PortError::Other(String::new())),
        _ => Ok(()),
    });
    world.run().await.unwrap();
    let lines = world.lines("mixture.jsonl");
    let set = |interval: u64| {
        lines
            .iter()
            .find(|line| line["interval"] == interval && line["weights"].is_object())
            .unwrap()
    };
    assert!(set(2)["refused"].as_str().unwrap().contains("NaN"));
    assert_eq!(set(2)["weights"], set(1)["weights"]);
    assert!(
        set(2)["student_perplexity"].get("a").is_none()
            && set(2)["student_perplexity"].get("b").is_some()
    );
    assert!(set(3).get("refused").is_none());
    assert_eq!(set(3)["previous_weights"], set(1)["weights"]);
}
