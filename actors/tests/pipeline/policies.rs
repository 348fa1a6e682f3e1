//! Every policy through the pipeline: what is measured for it, and that it loses no feedback when a run ends and
//! resumes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ddk_mixture::{
    DdkNoSmoothing, DoremiProxy, Fixed, InitialMixture, MixturePolicy, Odm, Policy, Sheared,
};
use serde_json::Value;

use crate::fakes::World;

fn world(policy: &Policy) -> World {
    let mut world = World::new();
    world.policy = policy.clone();
    world
}

/// Each policy with the number of lines that set its mixtures in 17 steps, and of the evaluations that it needs
/// (including the one after the last step).
fn policies() -> Vec<(Policy, usize, u64)> {
    let first = InitialMixture::Natural;
    vec![
        (Policy::DdkNoSmoothing(DdkNoSmoothing::new(5, first)), 4, 5),
        (Policy::Sheared(Sheared::new(5, first, vec![None; 3])), 4, 5),
        (
            Policy::Fixed(Fixed::new(MixturePolicy::Static, &[3.0, 1.0, 0.0], 5)),
            4,
            2,
        ),
        (Policy::Odm(Odm::new(0.9)), 17, 2),
        (
            Policy::DoremiProxy(DoremiProxy::new(1.0, 1e-3, 6.0, first)),
            17,
            2,
        ),
    ]
}

fn mixtures(world: &World) -> Vec<Value> {
    let lines = world.lines("mixture.jsonl").into_iter();
    lines.filter(|line| line.get("weights").is_some()).collect()
}

#[tokio::test]
async fn only_what_a_policy_needs_is_measured() {
    for (policy, intervals, evaluations) in policies() {
        let mut world = world(&policy);
        let measured = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&measured);
        world.hook = Arc::new(move |place, _| {
            if place == "evaluate student" {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        world.run().await.unwrap();
        let name = policy.name().to_string();
        assert_eq!(measured.load(Ordering::Relaxed), evaluations, "{name}");
        let lines = mixtures(&world);
        assert_eq!(lines.len(), intervals, "{name}");
        for line in &lines {
            assert_eq!(line["policy"], name);
            assert!(line.get("refused").is_none(), "{name}: {line}");
            let expected = if evaluations > 2 {
                &line["step"]
            } else {
                &Value::from(0)
            };
            assert_eq!(&line["evaluated_at_step"], expected, "{name}");
        }
    }
}

#[tokio::test]
async fn evaluations_on_the_way_come_where_they_are_asked_for() {
    let mut world = world(&Policy::Odm(Odm::new(0.9)));
    world.plan.evaluation_every = Some(6);
    world.run().await.unwrap();
    let seen: Vec<u64> = mixtures(&world)
        .iter()
        .map(|line| line["evaluated_at_step"].as_u64().unwrap())
        .collect();
    let expected: Vec<u64> = (0..17).map(|step| step / 6 * 6).collect();
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_run_that_ends_anywhere_goes_on_with_the_same_feedback() {
    for (policy, ..) in policies() {
        let whole = world(&policy);
        whole.run().await.unwrap();
        let whole = whole.trajectory();
        for step in [1, 4, 5, 8, 16] {
            let mut stopped = world(&policy);
            stopped.stop_after = Some(step);
            stopped.run().await.unwrap();
            stopped.stop_after = None;
            stopped.run().await.unwrap();
            assert!(stopped.trajectory() == whole, "stopped after step {step}");

            let mut dead = world(&policy).dying_in(step);
            dead.run().await.unwrap_err();
            dead.hook = Arc::new(|_, _| Ok(()));
            dead.run().await.unwrap();
            assert!(dead.trajectory() == whole, "died in step {step}");
        }
    }
}
