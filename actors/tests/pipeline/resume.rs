//! Runs that are stopped or killed anywhere and started again: the result is the same as without an interruption.

use std::sync::Arc;

use ddk_actors::{End, Outcome, PortError};

use crate::fakes::World;

fn flops(outcome: &Outcome) -> [f64; 4] {
    let totals = &outcome.totals;
    [
        totals.teacher_flops,
        totals.student_flops,
        totals.evaluation_flops,
        totals.mixture_flops,
    ]
}

#[tokio::test]
async fn a_stop_at_any_step_saves_that_step_and_goes_on_from_it() {
    let whole = World::new();
    let computed = flops(&whole.run().await.unwrap().unwrap());
    // 17 steps of 6 sequences; evaluated at the start, after steps 5, 10 and 15, and at the end.
    assert_eq!(computed, [3060.0, 1020.0, 15e6, 14e6]);
    let whole = whole.trajectory();
    let mut stopped = 0;
    for step in 1..17 {
        let mut world = World::new();
        world.stop_after = Some(step);
        let outcome = world.run().await.unwrap().unwrap();
        stopped += u64::from(outcome.end == End::Stopped);
        // The student sees the stop while it waits. It finishes a step that has begun.
        assert!(outcome.step >= step && world.lines("run.jsonl").len() as u64 == outcome.step);
        world.stop_after = None;
        let resumed = world.run().await.unwrap().unwrap();
        assert!(matches!(resumed.end, End::Finished(_)));
        assert!(world.trajectory() == whole, "stopped after step {step}");
        assert_eq!(flops(&resumed), computed, "stopped after step {step}");
        assert_eq!(resumed.totals.tokens.iter().sum::<u64>(), {
            let lines = world.lines("run.jsonl");
            lines
                .iter()
                .map(|line| line["tokens"].as_u64().unwrap())
                .sum::<u64>()
        });
    }
    assert!(
        stopped >= 10,
        "only {stopped} of 16 runs were stopped before their end"
    );
}

#[tokio::test(start_paused = true)]
async fn a_student_that_dies_at_any_step_costs_only_the_steps_since_the_last_save() {
    let whole = World::new();
    whole.run().await.unwrap();
    let whole = whole.trajectory();
    for step in 1..=17 {
        let mut world = World::new().dying_in(step);
        let error = world.run().await.unwrap_err().to_string();
        assert!(
            error.contains("student failed: it panicked: the student dies"),
            "{error}"
        );
        world.hook = Arc::new(|_, _| Ok(()));
        world.run().await.unwrap();
        assert!(world.trajectory() == whole, "died in step {step}");
    }
}

/// A stop also cuts off the last evaluation: every step is saved before it begins, and the next start finishes the
/// run.
#[tokio::test]
async fn a_stop_in_the_last_evaluation_loses_nothing() {
    let whole = World::new();
    let finished = whole.run().await.unwrap().unwrap();
    let mut world = World::new();
    world.stop_after = Some(17);
    world.hook = Arc::new(|place, step| match (place, step) {
        ("evaluate until told", 17) => Err(PortError::Other("held".to_owned())),
        _ => Ok(()),
    });
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!(
        (outcome.end, outcome.step, outcome.after),
        (End::Stopped, 17, None)
    );
    assert_eq!(world.weight(), whole.weight());
    world.stop_after = None;
    world.hook = Arc::new(|place, _| match place {
        "accumulate" => Err(PortError::Other("no more steps".to_owned())),
        _ => Ok(()),
    });
    let resumed = world.run().await.unwrap().unwrap();
    assert_eq!(
        (resumed.end, &resumed.after),
        (finished.end, &finished.after)
    );
    assert_eq!(flops(&resumed), flops(&finished));
    assert!(world.trajectory() == whole.trajectory());
}

#[tokio::test]
async fn a_run_interrupted_after_its_last_step_only_sums_up() {
    let mut world = World::new();
    world.hook = Arc::new(|place, step| match (place, step) {
        ("evaluate student", 17) => Err(PortError::Other("the last evaluation fails".to_owned())),
        _ => Ok(()),
    });
    world.run().await.unwrap_err();
    world.hook = Arc::new(|place, _| match place {
        "accumulate" => Err(PortError::Other("no more steps".to_owned())),
        _ => Ok(()),
    });
    let outcome = world.run().await.unwrap().unwrap();
    assert_eq!(outcome.step, 17);
    assert!(outcome.after.is_some());
}

/// A run to step 12 that is then extended to 17 equals a run to 17 whose schedule ends with step 12. It does so even
/// if it was killed on its way to 12. Step 12 is in the middle of an interval unless the schedule ends there; step 10
/// is at the end of one anyway.
#[tokio::test(start_paused = true)]
async fn an_extended_run_equals_one_whose_limit_lay_further_on() {
    for (lag, limit) in [(0, 12), (0, 10), (1, 12), (1, 10)] {
        let to = |steps: u64| {
            let mut world = World::new();
            world.plan.lag = lag;
            world.plan.max_steps = Some(steps);
            world.plan.interval_end = Some(limit);
            world
        };
        let whole = to(17);
        whole.run().await.unwrap().unwrap();
        // The schedule's end changes nothing for a run that ends there.
        let (mut plain, short) = (to(limit), to(limit));
        plain.plan.interval_end = None;
        plain.run().await.unwrap().unwrap();
        short.run().await.unwrap().unwrap();
        assert!(
            plain.trajectory() == short.trajectory(),
            "lag {lag}, {limit}"
        );
        for killed in [None, Some(3), Some(11)] {
            let mut world = to(limit);
            if let Some(step) = killed.filter(|step| *step <= limit) {
                world = world.dying_in(step);
                world.run().await.unwrap_err();
                world.hook = Arc::new(|_, _| Ok(()));
            } else {
                world.run().await.unwrap().unwrap();
            }
            world.plan.max_steps = Some(17);
            let outcome = world.run().await.unwrap().unwrap();
            assert_eq!(outcome.step, 17);
            assert!(
                world.trajectory() == whole.trajectory(),
                "lag {lag}, limit {limit}, killed in {killed:?}"
            );
        }
    }
}
