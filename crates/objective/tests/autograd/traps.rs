//! Tests what well-known code gets wrong: extreme logits, padded columns, unscored positions, a softmax in bf16.

use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, HeadOutput, Objective, Positions, chunked_head,
};
use tch::{Device, Kind, Tensor};

use crate::case::{Case, DIVERGENCES, POSITIONS, VOCABULARY, by_definition};

/// Runs the head directly on logits: the hidden states are the logits, and the LM head is the identity. Returns the
/// output, with the gradient of the logits, and the divergence at each position.
fn on_logits(
    [student, teacher]: [&Tensor; 2],
    labels: &Tensor,
    objective: Objective,
) -> (HeadOutput, Tensor) {
    let vocabulary = student.size()[1];
    let identity = Tensor::eye(vocabulary, (student.kind(), Device::Cpu));
    let mut output = chunked_head(
        &HeadInput::new(student, &identity),
        Some(&HeadInput::new(teacher, &identity)),
        &Positions {
            labels,
            weights: None,
            denominator: 1.0,
        },
        &HeadOptions {
            objective,
            vocabulary,
            chunk: 7,
            detail: Detail::Positions,
        },
        &mut HeadGradients::default(),
    )
    .unwrap();
    let values = output.per_position.take().unwrap().divergence;
    (output, values)
}

/// Compares with f64 on the same fp32 logits: values within 1e-6 max(1, |value|), gradients within 1e-6 of the
/// largest in the row. The logits are of ordinary size, late in training (almost the same), large, and ±1e4, at
/// which a naive softmax overflows.
#[test]
fn fp32_is_within_its_tolerance_at_ordinary_and_extreme_logits() {
    let case = Case::new(8);
    let vocabulary = 150;
    let mut rng = ddk_order::stream(8, "logits", &[]);
    let mut normal = |scale: f64| {
        let values: Vec<f32> = (0..POSITIONS * vocabulary)
            .map(|_| (scale * ddk_order::standard_normal(&mut rng)) as f32)
            .collect();
        Tensor::from_slice(&values).reshape([POSITIONS, vocabulary])
    };
    let extreme = |logits: Tensor| logits.clamp(-1.0, 1.0) * 1e4;
    let late = normal(4.0);
    let pairs = [
        (normal(3.0), normal(3.0)),
        (&late + normal(0.05), late),
        (normal(30.0), normal(30.0)),
        (extreme(normal(2.0)), extreme(normal(2.0))),
        (extreme(normal(1e3)), extreme(normal(1e3))),
    ];
    let mask = case.labels.ge(0).to_kind(Kind::Double);
    for divergence in DIVERGENCES {
        for (index, (student, teacher)) in pairs.iter().enumerate() {
            for temperature in [1.0, 2.0] {
                let objective = Objective {
                    divergence: Some(divergence),
                    gamma: 0.3,
                    temperature,
                    ..Objective::default()
                };
                let what = format!("{divergence:?}, pair {index}, T {temperature}");
                let (output, values) = on_logits([student, teacher], &case.labels, objective);
                let leaf = student.to_kind(Kind::Double).set_requires_grad(true);
                let log = |logits: &Tensor, t: f64| (logits / t).log_softmax(-1, Kind::Double);
                let t = log(&teacher.to_kind(Kind::Double), temperature);
                let expected = by_definition(divergence, &log(&leaf, temperature), &t) * &mask;
                let error = (values.to_kind(Kind::Double) - &expected).abs();
                let relative = error / expected.abs().clamp_min(1.0);
                let worst = relative.max().double_value(&[]);
                assert!(worst < 1e-6, "{what}: value off by {worst:e}");
                let labels = case.labels.clamp_min(0).unsqueeze(1);
                let ce = -log(&leaf, 1.0).gather(1, &labels, false).squeeze_dim(1) * &mask;
                (ce + expected * 0.3).sum(Kind::Double).backward();
                let expected = leaf.grad();
                let error = (output.hidden_gradient.to_kind(Kind::Double) - &expected).abs();
                let largest = expected.abs().amax([1], true);
                // If the student is confident and right, p - 1 is a difference of fp32 numbers near 1, accurate to
                // half a unit in the last place.
                let tolerance = (largest * 1e-6).clamp_min(f64::from(f32::EPSILON) / 2.0);
                let worst = (error / tolerance).max().double_value(&[]);
                assert!(worst < 1.0, "{what}: gradient off by {worst} tolerances");
            }
        }
    }
}

#[test]
fn the_softmax_of_bf16_models_is_in_fp32() {
    let case = Case::new(9);
    let [hidden, matrix] = [0, 1].map(|index| case.student[index].to_kind(Kind::BFloat16));
    let [teacher, teacher_matrix] = [0, 1].map(|index| case.teacher[index].to_kind(Kind::BFloat16));
    let mut weight = matrix.to_kind(Kind::Float).zeros_like();
    let output = chunked_head(
        &HeadInput::new(&hidden, &matrix),
        Some(&HeadInput::new(&teacher, &teacher_matrix)),
        &Positions {
            labels: &case.labels,
            weights: None,
            denominator: 50.0,
        },
        &HeadOptions {
            objective: Objective::default(),
            vocabulary: VOCABULARY,
            chunk: 5,
            detail: Detail::Sums,
        },
        &mut HeadGradients {
            weight: Some(&mut weight),
            bias: None,
            buffers: None,
        },
    )
    .unwrap();
    let logits = |hidden: &Tensor, matrix: &Tensor| {
        hidden
            .mm(&matrix.tr())
            .narrow(1, 0, VOCABULARY)
            .to_kind(Kind::Double)
            .log_softmax(-1, Kind::Double)
    };
    let (s, t) = (logits(&hidden, &matrix), logits(&teacher, &teacher_matrix));
    let mask = case.labels.ge(0).to_kind(Kind::Double);
    let kl = ((t.exp() * (&t - &s)).sum_dim_intlist(1, false, Kind::Double) * mask)
        .sum(Kind::Double)
        .double_value(&[]);
    assert!(
        (output.kl_sum - kl).abs() < 1e-5 * kl,
        "{} instead of {kl}",
        output.kl_sum
    );
    assert_eq!(weight.kind(), Kind::Float);
    assert!(weight.abs().max().double_value(&[]) > 0.0);
}

/// The inputs at unscored positions change nothing.
#[test]
fn positions_that_are_not_scored_count_for_nothing() {
    for divergence in DIVERGENCES {
        let objective = Objective {
            divergence: Some(divergence),
            ..Objective::default()
        };
        let case = Case::new(14);
        let (output, weight, _) = case.head(objective, 4);
        let other = Case::new(14);
        let unscored = other.labels.lt(0).unsqueeze(1);
        for side in [&other.student, &other.teacher] {
            let _ = side[0].shallow_clone().masked_fill_(&unscored, 37.0);
        }
        let (changed, changed_weight, _) = other.head(objective, 4);
        assert_eq!(
            (output.ce_sum, output.kl_sum),
            (changed.ce_sum, changed.kl_sum)
        );
        assert!(weight.equal(&changed_weight), "{divergence:?}");
        assert!(output.hidden_gradient.equal(&changed.hidden_gradient));
    }
}

#[test]
fn columns_past_the_vocabulary_count_for_nothing() {
    let case = Case::new(5);
    let (output, weight, bias) = case.head(Objective::default(), 4);
    let mut other = Case::new(5);
    for side in [&mut other.student, &mut other.teacher] {
        for tensor in &mut side[1..] {
            let padding = tensor.size()[0] - VOCABULARY;
            let _ = tensor.narrow(0, VOCABULARY, padding).fill_(1e3);
        }
    }
    let (changed, changed_weight, _) = other.head(Objective::default(), 4);
    assert_eq!(
        (output.ce_sum, output.kl_sum),
        (changed.ce_sum, changed.kl_sum)
    );
    assert!(weight.equal(&changed_weight));
    assert_eq!(
        weight
            .narrow(0, VOCABULARY, 3)
            .abs()
            .max()
            .double_value(&[]),
        0.0
    );
    assert_eq!(
        bias.narrow(0, VOCABULARY, 3).abs().max().double_value(&[]),
        0.0
    );
}

#[test]
fn a_teacher_that_is_the_student_costs_nothing() {
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 2e-5)] {
        let case = Case::new(6);
        let [hidden, matrix] = [0, 1].map(|index| case.student[index].to_kind(kind));
        let input = HeadInput::new(&hidden, &matrix);
        for divergence in DIVERGENCES {
            let gradient_at = |gamma| {
                let output = chunked_head(
                    &input,
                    Some(&input),
                    &Positions {
                        labels: &case.labels,
                        weights: None,
                        denominator: 1.0,
                    },
                    &HeadOptions {
                        objective: Objective {
                            divergence: Some(divergence),
                            gamma,
                            ..Objective::default()
                        },
                        vocabulary: VOCABULARY,
                        chunk: 8,
                        detail: Detail::Sums,
                    },
                    &mut HeadGradients::default(),
                )
                .unwrap();
                assert!(
                    output.kl_sum.abs() < tolerance,
                    "{divergence:?}, {kind:?}: {}",
                    output.kl_sum
                );
                output.hidden_gradient
            };
            let difference = (gradient_at(1.0) - gradient_at(0.0)).abs().max();
            assert!(difference.double_value(&[]) < tolerance, "{divergence:?}");
        }
    }
}
