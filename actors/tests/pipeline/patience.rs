//! A run with patience ends where the mean gap has not improved for long enough, whether or not it was interrupted.

use ddk_actors::{End, StopReason};

use crate::{fakes::World, ranks};

const STEPS: u64 = 60;
/// Steps of an interval of the fake run's policy.
const INTERVAL: u64 = 5;

fn world(lag: u64, patience: Option<u64>, min_improvement: f64) -> World {
    let mut world = World::new();
    world.plan.max_steps = Some(STEPS);
    world.plan.lag = lag;
    (world.plan.patience, world.plan.min_improvement) = (patience, min_improvement);
    world
}

/// Mean gaps after the evaluated steps, from the lines of a run without patience.
fn mean_gaps(world: &World) -> Vec<(u64, f64)> {
    let mut gaps: Vec<(u64, f64)> = Vec::new();
    let lines = world.lines("mixture.jsonl");
    // Other lines say what an interval drew.
    for line in lines.iter().filter(|line| line["gap"].is_object()) {
        let step = line["evaluated_at_step"].as_u64().unwrap();
        let domains = line["gap"].as_object().unwrap().values();
        let of_domains: Vec<f64> = domains.map(|gap| gap.as_f64().unwrap()).collect();
        assert_eq!(of_domains.len(), 3);
        if step > 0 && gaps.last().is_none_or(|(last, _)| *last < step) {
            gaps.push((step, of_domains.iter().sum::<f64>() / 3.0));
        }
    }
    gaps
}

/// The step of the evaluation that exhausts the patience.
fn exhausted(gaps: &[(u64, f64)], patience: u64, min_improvement: f64) -> Option<u64> {
    let (mut best, mut since) = (f64::INFINITY, 0);
    for (step, gap) in gaps {
        if best - gap > min_improvement {
            (best, since) = (*gap, 0);
        } else {
            since += 1;
        }
        if since == patience {
            return Some(*step);
        }
    }
    None
}

#[tokio::test]
async fn a_run_ends_after_so_many_evaluations_without_improvement() {
    for lag in [0, 1] {
        let whole = world(lag, None, 0.0);
        whole.run().await.unwrap();
        let gaps = mean_gaps(&whole);
        assert!(gaps.len() >= 10, "{gaps:?}");
        let mut steps = Vec::new();
        for (patience, min_improvement) in [(1, 0.0), (3, 0.0), (3, 0.02), (2, 10.0)] {
            let what = format!("lag {lag}, patience {patience}, {min_improvement}: {gaps:?}");
            let evaluated = exhausted(&gaps, patience, min_improvement).expect(&what);
            // With a lag, an evaluation is known in the interval that follows it.
            let expected = evaluated + lag * INTERVAL;
            let patient = world(lag, Some(patience), min_improvement);
            let outcome = patient.run().await.unwrap().unwrap();
            assert_eq!(outcome.end, End::Finished(StopReason::Patience), "{what}");
            assert_eq!(outcome.step, expected, "{what}");
            // Until then, it is the same run.
            let lines = patient.lines("run.jsonl");
            assert!(lines == whole.lines("run.jsonl")[..expected as usize]);
            steps.push(expected);

            for stop_after in [3, expected - 2] {
                let mut stopped = world(lag, Some(patience), min_improvement);
                stopped.stop_after = Some(stop_after);
                let outcome = stopped.run().await.unwrap().unwrap();
                assert!(outcome.end == End::Stopped && outcome.step <= stop_after + 1);
                stopped.stop_after = None;
                let outcome = stopped.run().await.unwrap().unwrap();
                assert_eq!(outcome.end, End::Finished(StopReason::Patience), "{what}");
                assert!(stopped.trajectory() == patient.trajectory(), "{what}");
            }
            // More patience extends the run.
            let mut extended = patient;
            extended.plan.patience = Some(patience + 1);
            extended.run().await.unwrap();
            let longer = world(lag, Some(patience + 1), min_improvement);
            longer.run().await.unwrap();
            assert!(extended.trajectory() == longer.trajectory(), "{what}");
            assert!(longer.lines("run.jsonl").len() as u64 > expected, "{what}");
        }
        steps.sort_unstable();
        steps.dedup();
        assert!(
            steps.len() > 1,
            "all cases end with the same step: {steps:?}"
        );
    }
}

/// An evaluation without a finite mean gap improves nothing, and a run without perplexities in between never ends so.
#[tokio::test]
async fn what_is_not_finite_is_no_improvement() {
    let mut world = world(0, Some(2), 0.0);
    world.hook = std::sync::Arc::new(|place, step| {
        let fails = place == "not finite" && step > 0;
        (!fails)
            .then_some(())
            .ok_or_else(|| ddk_actors::PortError::Other("this evaluation is not finite".to_owned()))
    });
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!(outcome.end, End::Finished(StopReason::Patience));
    assert_eq!(outcome.step, 2 * INTERVAL);
}

#[test]
fn all_ranks_lose_patience_at_the_same_step() {
    for lag in [0, 1] {
        let make = move || {
            let mut world = ranks::world();
            world.plan.lag = lag;
            (world.plan.patience, world.plan.max_steps) = (Some(2), Some(STEPS));
            world
        };
        let alone = ranks::whole(1, make);
        let end = format!("{:?}", End::Finished(StopReason::Patience));
        assert_eq!(alone.2["end"], end);
        for count in [2, 4] {
            assert!(
                ranks::whole(count, make) == alone,
                "{count} ranks, lag {lag}"
            );
        }
    }
}
