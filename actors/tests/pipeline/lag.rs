//! Mixtures that lag: an evaluation of a copy of the student decides them ahead. A run resumes exactly wherever it
//! ends.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ddk_actors::{End, StopReason};
use ddk_mixture::{Fixed, InitialMixture, MixturePolicy, Policy, Sheared};
use serde_json::Value;

use crate::fakes::{World, dawdle};

fn world() -> World {
    let mut world = World::new();
    world.plan.lag = 1;
    world
}

#[tokio::test]
async fn each_mixture_follows_from_the_evaluation_an_interval_earlier() {
    let world = world();
    let outcome = world.run().await.unwrap().unwrap();
    let lines = world.lines("mixture.jsonl");
    let lines: Vec<&Value> = lines
        .iter()
        .filter(|line| line.get("weights").is_some())
        .collect();
    let steps = |key: &str| -> Vec<u64> {
        let values = lines.iter().map(|line| line[key].as_u64().unwrap());
        values.collect()
    };
    assert_eq!(steps("step"), [0, 5, 10, 15]);
    assert_eq!(steps("evaluated_at_step"), [0, 0, 5, 10]);
    // The second interval uses r_0, measured before the first step.
    assert_eq!(
        lines[1]["student_perplexity"],
        lines[0]["student_perplexity"]
    );
    assert_ne!(
        lines[2]["student_perplexity"],
        lines[1]["student_perplexity"]
    );
    // At the start, after steps 5, 10 and 15, and at the end.
    assert_eq!(outcome.totals.evaluation_flops, 15e6);

    let exact = World::new();
    exact.run().await.unwrap();
    let exact = exact.lines("mixture.jsonl");
    assert_eq!(&exact[0], lines[0], "the first interval is the same");
}

#[tokio::test]
async fn the_pipeline_reads_on_while_a_copy_is_evaluated() {
    let mut world = world();
    let steps = Arc::clone(&world.observer);
    let beyond = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&beyond);
    world.plan.replicas = 2;
    world.plan.micro_rows = 6;
    world.hook = Arc::new(move |place, step| {
        // Replica 1 labels the next step, so the student completes at least that step while replica 0 evaluates.
        if place == "evaluate copy" && step == 5 {
            while steps.steps.load(Ordering::Relaxed) < 6 {
                std::thread::yield_now();
            }
            seen.store(steps.steps.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Ok(())
    });
    world.run().await.unwrap();
    assert!(beyond.load(Ordering::Relaxed) >= 6);
}

#[tokio::test]
async fn a_lagging_run_goes_on_exactly_wherever_it_ends() {
    let whole = world();
    let computed = whole.run().await.unwrap().unwrap().totals;
    let whole = whole.trajectory();
    for step in 1..17 {
        let mut stopped = world();
        stopped.stop_after = Some(step);
        stopped.run().await.unwrap();
        stopped.stop_after = None;
        let outcome = stopped.run().await.unwrap().unwrap();
        assert!(matches!(outcome.end, End::Finished(_)));
        assert!(stopped.trajectory() == whole, "stopped after step {step}");
        assert_eq!(outcome.totals.evaluation_flops, computed.evaluation_flops);

        let mut dead = world().dying_in(step);
        dead.run().await.unwrap_err();
        dead.hook = Arc::new(|_, _| Ok(()));
        dead.run().await.unwrap();
        assert!(dead.trajectory() == whole, "died in step {step}");
    }
}

#[tokio::test]
async fn depths_lanes_and_slow_evaluations_change_nothing() {
    let whole = world();
    whole.run().await.unwrap();
    let whole = whole.trajectory();
    for (depth, replicas) in [(0, 1), (1, 1), (8, 1), (0, 2), (2, 3)] {
        let mut other = world();
        other.plan.queue_depth = depth;
        other.plan.replicas = replicas;
        other.hook = Arc::new(|place, number| {
            let times = if place == "evaluate copy" { 40 } else { 1 };
            (0..times).for_each(|time| dawdle(number + time));
            Ok(())
        });
        other.run().await.unwrap();
        assert!(
            other.trajectory() == whole,
            "depth {depth}, {replicas} replicas"
        );
    }
}

#[tokio::test]
async fn a_teacher_that_fails_while_it_evaluates_does_so_again() {
    let whole = world();
    whole.run().await.unwrap();
    let mut healed = world();
    let failures = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&failures);
    healed.hook = Arc::new(move |place, step| {
        let first = || counter.fetch_add(1, Ordering::Relaxed) == 0;
        assert!(
            !(place == "evaluate copy" && step == 10 && first()),
            "it fails once"
        );
        Ok(())
    });
    healed.run().await.unwrap();
    assert_eq!(failures.load(Ordering::Relaxed), 2);
    assert!(healed.trajectory() == whole.trajectory());
}

#[tokio::test]
async fn limits_that_are_known_ahead_end_the_run_at_the_end_of_an_interval() {
    let mut world = world();
    world.plan.max_passes = Some(4.0);
    world.plan.max_steps = None;
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!(outcome.end, End::Finished(StopReason::MaxEpochs));
    let all = 4 * world.plan.domain_sequences.iter().sum::<u64>();
    assert_eq!(outcome.step, all / world.plan.sequences_per_step);

    let mut caught_up = self::world();
    caught_up.plan.target_gap = Some(100.0_f64.ln());
    let outcome = caught_up.run().await.unwrap().unwrap();
    assert_eq!(outcome.end, End::Finished(StopReason::TargetGap));
    // Measured after step 5, known in the interval that ends with step 10.
    assert_eq!(outcome.step, 10);
}

#[tokio::test]
async fn other_policies_lag_too() {
    let first = InitialMixture::Natural;
    for policy in [
        Policy::Sheared(Sheared::new(5, first, vec![None; 3])),
        Policy::Fixed(Fixed::new(MixturePolicy::Equal, &[1.0; 3], 5)),
    ] {
        let mut whole = world();
        whole.policy = policy.clone();
        whole.run().await.unwrap();
        let mut stopped = world();
        stopped.policy = policy;
        stopped.stop_after = Some(8);
        stopped.run().await.unwrap();
        stopped.stop_after = None;
        stopped.run().await.unwrap();
        assert!(stopped.trajectory() == whole.trajectory());
    }
}
