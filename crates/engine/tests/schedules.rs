//! Compares every shape of the learning rate with the schedules of transformers (schedules.py).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;

use ddk_engine::{DecayForm, DecaySteps, Schedule, Shape};

#[test]
fn every_shape_is_that_of_transformers() {
    let lines = include_str!("schedules.csv").lines().skip(1);
    let mut seen = BTreeMap::new();
    for line in lines {
        let [name, warmup, total, decay, form, step, rate] =
            line.split(',').collect::<Vec<_>>()[..]
        else {
            panic!("{line}");
        };
        let total_steps: u64 = total.parse().unwrap();
        let decay: u64 = decay.parse().unwrap();
        let form = match form {
            "cosine" => DecayForm::Cosine,
            "1-sqrt" => DecayForm::OneMinusSqrt,
            _ => DecayForm::Linear,
        };
        // Both ways to set the length of a decay give the same steps.
        let lengths = [
            DecaySteps::Number(decay),
            DecaySteps::Fraction(decay as f64 / total_steps as f64),
        ];
        let shapes = match name {
            "constant" => vec![Shape::Constant],
            "linear" => vec![Shape::Linear],
            "cosine" => vec![Shape::Cosine],
            "wsd" => lengths.map(|steps| Shape::Wsd { steps, form }).to_vec(),
            _ => panic!("{line}"),
        };
        for shape in shapes {
            let schedule = Schedule {
                shape,
                peak: 2e-3,
                end: 1.5e-4,
                warmup_steps: warmup.parse().unwrap(),
                total_steps,
            };
            let got = schedule.learning_rate(step.parse().unwrap());
            let expected: f64 = rate.parse().unwrap();
            assert!(
                (got - expected).abs() < 1e-12 * expected,
                "{line}: {got} with {shape:?}"
            );
        }
        *seen.entry(name).or_insert(0) += 1;
    }
    assert_eq!(
        seen,
        BTreeMap::from([
            ("constant", 43),
            ("cosine", 80),
            ("linear", 86),
            ("wsd", 215)
        ])
    );
}
