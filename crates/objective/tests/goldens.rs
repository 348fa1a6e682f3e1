//! Compares the head with golden values that were computed in float64 from the formulas.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_objective::{
    Detail, Divergence, HeadGradients, HeadInput, HeadOptions, HeadOutput, Objective, Positions,
    chunked_head,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

/// The CPU, or the device that `make gpu-check` sets.
fn device() -> Device {
    ddk_torch::test_device().unwrap()
}

struct Goldens(Value);

impl Goldens {
    fn read() -> Self {
        Self(serde_json::from_str(include_str!("goldens.json")).unwrap())
    }

    fn matrix(&self, key: &str) -> Tensor {
        let rows: Vec<Tensor> = self.0[key].as_array().unwrap().iter().map(vector).collect();
        Tensor::stack(&rows, 0)
    }

    fn mean(&self, key: &str) -> f64 {
        self.0[key]["mean_valid"].as_f64().unwrap()
    }
}

fn vector(value: &Value) -> Tensor {
    let values: Vec<f64> = value
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_f64().unwrap())
        .collect();
    Tensor::from_slice(&values).to_device(device())
}

/// Mask of the scored positions of the goldens.
fn scored() -> Tensor {
    Tensor::from_slice(&[1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]).to_device(device())
}

/// Runs the head on logits: the hidden states are the logits, and the LM head is the identity.
fn head(goldens: &Goldens, objective: Objective, chunk: i64, kind: Kind) -> HeadOutput {
    let [student, teacher] = ["S", "T"].map(|key| goldens.matrix(key).to_kind(kind));
    let vocabulary = student.size()[1];
    let identity = Tensor::eye(vocabulary, (kind, device()));
    let labels: Vec<i64> = goldens.0["labels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|label| label.as_i64().unwrap())
        .collect();
    let scored = labels.iter().filter(|label| **label >= 0).count();
    let mut weight = identity.zeros_like();
    chunked_head(
        &HeadInput::new(&student, &identity),
        Some(&HeadInput::new(&teacher, &identity)),
        &Positions {
            labels: &Tensor::from_slice(&labels).to_device(device()),
            weights: None,
            denominator: scored as f64,
        },
        &HeadOptions {
            objective,
            vocabulary,
            chunk,
            detail: Detail::PositionsAndTeacher,
        },
        &mut HeadGradients {
            weight: Some(&mut weight),
            bias: None,
            buffers: None,
        },
    )
    .unwrap()
}

const CHUNKS: [i64; 6] = [1, 2, 3, 5, 7, 100];

#[test]
fn values_and_gradient_are_met_in_f64_and_f32() {
    let goldens = Goldens::read();
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 2e-6)] {
        for chunk in CHUNKS {
            let output = head(&goldens, Objective::default(), chunk, kind);
            let close = |got: f64, expected: f64, what: &str| {
                assert!(
                    (got - expected).abs() < tolerance,
                    "{what}, {kind:?}, chunk {chunk}: {got} instead of {expected}"
                );
            };
            close(output.ce_sum / 5.0, goldens.mean("ce"), "cross-entropy");
            close(output.kl_sum / 5.0, goldens.mean("fkl_T1"), "forward KL");
            close(
                (output.ce_sum + 0.2 * output.kl_sum) / 5.0,
                goldens.mean("ddk_total_ce_plus_0.2fkl"),
                "CE + 0.2 KL",
            );
            let difference =
                output.hidden_gradient.to_kind(Kind::Double) - goldens.matrix("gradient");
            close(difference.abs().max().double_value(&[]), 0.0, "gradient");
            let values = output.per_position.unwrap();
            let scored = scored();
            for (got, key) in [(values.ce, "ce"), (values.divergence, "fkl_T1")] {
                let expected = vector(&goldens.0[key]["per_token"]) * &scored;
                close((got - expected).abs().max().double_value(&[]), 0.0, key);
            }
        }
    }
}

#[test]
fn temperature_two_is_met_with_and_without_its_square() {
    let goldens = Goldens::read();
    for (scale_by_temperature_squared, factor) in [(false, 1.0), (true, 4.0)] {
        let objective = Objective {
            gamma: 0.2,
            temperature: 2.0,
            scale_by_temperature_squared,
            ..Objective::default()
        };
        for chunk in CHUNKS {
            let output = head(&goldens, objective, chunk, Kind::Double);
            let expected = factor * goldens.mean("fkl_T2_unscaled");
            assert!((output.kl_sum / 5.0 - expected).abs() < 1e-9);
            assert!((output.ce_sum / 5.0 - goldens.mean("ce")).abs() < 1e-9);
        }
    }
}

#[test]
fn every_divergence_is_met_in_f64_and_f32() {
    let goldens = Goldens::read();
    let scored = scored();
    for (key, divergence) in [
        ("fkl_T1", Divergence::ForwardKl),
        ("rkl_T1", Divergence::ReverseKl),
        ("gjsd_0.1", Divergence::Jsd { beta: 0.1 }),
        ("gjsd_0.5", Divergence::Jsd { beta: 0.5 }),
        ("gjsd_0.9", Divergence::Jsd { beta: 0.9 }),
        ("skl_0.1", Divergence::SkewKl { skew: 0.1 }),
        ("srkl_0.1", Divergence::SkewReverseKl { skew: 0.1 }),
        ("tvd", Divergence::TotalVariation),
    ] {
        let objective = Objective {
            divergence: Some(divergence),
            ..Objective::default()
        };
        for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 2e-6)] {
            for chunk in CHUNKS {
                let output = head(&goldens, objective, chunk, kind);
                let mean = output.kl_sum / 5.0;
                let values = output.per_position.unwrap().divergence;
                let expected = vector(&goldens.0[key]["per_token"]) * &scored;
                let worst = (values - expected).abs().max().double_value(&[]);
                assert!(
                    (mean - goldens.mean(key)).abs() < tolerance && worst < tolerance,
                    "{key}, {kind:?}, chunk {chunk}: mean {mean}, a token off by {worst:e}"
                );
            }
        }
    }
}
