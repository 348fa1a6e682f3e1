//! The policy `ddk` against golden values computed in float64 from the paper's formulas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_mixture::{Ddk, FirstInterval, Perplexities, Policy};
use serde::Deserialize;

#[derive(Deserialize)]
struct Goldens {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    alpha: f64,
    ratios: Vec<Vec<f64>>,
    r: Vec<Vec<f64>>,
}

#[test]
fn every_golden_value_is_met_to_1e_9() {
    let goldens: Goldens = serde_json::from_str(include_str!("ddk-goldens.json")).unwrap();
    assert_eq!(goldens.cases.len(), 6);
    for case in goldens.cases {
        let natural = vec![1.0 / case.ratios[0].len() as f64; case.ratios[0].len()];
        let mut policy = Ddk::new(case.alpha, 1000, FirstInterval::Discrepancy);
        for (interval, (ratios, expected)) in case.ratios.iter().zip(&case.r).enumerate() {
            // A teacher at perplexity 1, so that the student's perplexity is the ratio itself.
            let perplexities = Perplexities {
                student: ratios.clone(),
                teacher: vec![1.0; ratios.len()],
            };
            let decision = if interval == 0 {
                policy.first(&natural, &perplexities)
            } else {
                // A restart between any two intervals changes nothing.
                let text = serde_json::to_string(&policy.state()).unwrap();
                policy = Ddk::restore(serde_json::from_str(&text).unwrap());
                policy.next(&perplexities)
            }
            .unwrap();
            for (weight, expected) in decision.weights.iter().zip(expected) {
                assert!(
                    (weight - expected).abs() < 1e-9,
                    "{}, interval {interval}: {weight} instead of {expected}",
                    case.name
                );
            }
        }
    }
}
