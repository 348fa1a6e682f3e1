//! Compares values and gradients with autograd on dense logits. Also tests reproducibility and inputs that do not
//! match.

use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, LayerInput, Objective, Positions, chunked_head,
    cross_entropy_sum, layer_loss,
};
use tch::{Device, Kind, Tensor};

use crate::case::{Case, DIVERGENCES, POSITIONS, VOCABULARY, assert_close};

#[test]
fn gradients_of_states_matrix_and_bias_are_autograds() {
    for (seed, (scale, soft_cap, weighted)) in [
        (1.0, None, false),
        (1.0, None, true),
        (0.7, Some(3.0), false),
        (1.3, None, true),
    ]
    .into_iter()
    .enumerate()
    {
        let mut case = Case::new(seed as u64);
        (case.scale, case.soft_cap) = (scale, soft_cap);
        case.weights = weighted.then(|| Tensor::rand([POSITIONS], (Kind::Double, Device::Cpu)));
        for divergence in DIVERGENCES {
            for (temperature, scale_by_temperature_squared) in
                [(1.0, false), (2.0, false), (2.0, true), (0.5, true)]
            {
                let objective = Objective {
                    divergence: Some(divergence),
                    gamma: 0.3,
                    temperature,
                    scale_by_temperature_squared,
                    ..Objective::default()
                };
                let (ce, kl, gradients) = case.dense(objective);
                let chunks: &[i64] = if seed == 0 { &[1, 2, 5, 23, 64] } else { &[5] };
                for &chunk in chunks {
                    let (output, weight, bias) = case.head(objective, chunk);
                    let what = format!("case {seed}, {objective:?}, chunk {chunk}");
                    assert!(
                        (output.ce_sum - ce).abs() < 1e-9 && (output.kl_sum - kl).abs() < 1e-9,
                        "{what}"
                    );
                    assert_close(&output.hidden_gradient, &gradients[0], &what);
                    assert_close(&weight, &gradients[1], &what);
                    assert_close(&bias, &gradients[2], &what);
                }
            }
        }
    }
}

/// The head returns the teacher's own cross-entropy on request, whether or not the loss uses the teacher. The
/// request changes nothing else.
#[test]
fn values_of_positions_come_where_they_are_asked_for() {
    let mut case = Case::new(13);
    case.weights = Some(Tensor::rand([POSITIONS], (Kind::Double, Device::Cpu)));
    let mask = case.labels.ge(0).to_kind(Kind::Double);
    let weights = &mask * case.weights.as_ref().unwrap();
    let expected = |side| {
        let log = case.dense_logits(side).log_softmax(-1, Kind::Double);
        let labels = case.labels.clamp_min(0).unsqueeze(1);
        -log.gather(1, &labels, false).squeeze_dim(1) * &mask
    };
    for gamma in [0.0, 0.3] {
        let objective = Objective {
            gamma,
            ..Objective::default()
        };
        let (sums, sums_weight, _) = case.head(objective, 5);
        assert!(sums.per_position.is_none());
        for detail in [Detail::Positions, Detail::PositionsAndTeacher] {
            let (output, weight, _) = case.head_with(objective, 5, detail);
            assert_eq!(
                (output.ce_sum, output.kl_sum),
                (sums.ce_sum, sums.kl_sum),
                "{detail:?}"
            );
            assert!(weight.equal(&sums_weight));
            assert!(output.hidden_gradient.equal(&sums.hidden_gradient));
            let values = output.per_position.unwrap();
            assert_close(&values.ce, &expected(&case.student), "the student's");
            let sum = (&values.divergence * &weights).sum(Kind::Double);
            assert!((sum.double_value(&[]) - sums.kl_sum).abs() < 1e-12);
            assert_eq!(gamma == 0.0, sums.kl_sum == 0.0);
            match values.teacher_ce {
                Some(of_teacher) => {
                    assert_close(&of_teacher, &expected(&case.teacher), "the teacher's");
                    assert_eq!(detail, Detail::PositionsAndTeacher);
                }
                None => assert_eq!(detail, Detail::Positions),
            }
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_step() {
    let case = Case::new(7);
    let (whole, whole_weight, _) = case.head(Objective::default(), 6);
    let mut weight = case.student[1].zeros_like();
    let (mut ce, mut gradients) = (0.0, Vec::new());
    for (start, size) in [(0, 10), (10, 13)] {
        let part = |tensor: &Tensor| tensor.narrow(0, start, size);
        let (student, teacher) = (part(&case.student[0]), part(&case.teacher[0]));
        let output = chunked_head(
            &HeadInput {
                bias: Some(&case.student[2]),
                ..HeadInput::new(&student, &case.student[1])
            },
            Some(&HeadInput {
                bias: Some(&case.teacher[2]),
                ..HeadInput::new(&teacher, &case.teacher[1])
            }),
            &Positions {
                labels: &part(&case.labels),
                weights: None,
                denominator: 50.0,
            },
            &HeadOptions {
                objective: Objective::default(),
                vocabulary: VOCABULARY,
                chunk: 6,
                detail: Detail::Sums,
            },
            &mut HeadGradients {
                weight: Some(&mut weight),
                bias: None,
                buffers: None,
            },
        )
        .unwrap();
        ce += output.ce_sum;
        gradients.push(output.hidden_gradient);
    }
    assert!((ce - whole.ce_sum).abs() < 1e-10);
    assert_close(
        &Tensor::cat(&gradients, 0),
        &whole.hidden_gradient,
        "hidden states",
    );
    assert_close(&weight, &whole_weight, "matrix");
}

#[test]
fn a_layers_distance_and_its_gradients_are_autograds() {
    let mut case = Case::new(15);
    case.weights = Some(Tensor::rand([POSITIONS], (Kind::Double, Device::Cpu)));
    let hidden = case.student[0].copy().set_requires_grad(true);
    let filter = case.teacher[0]
        .narrow(0, 0, 6)
        .tr()
        .contiguous()
        .set_requires_grad(true);
    let target = &case.teacher[0];
    let weights = case.labels.ge(0).to_kind(Kind::Double) * case.weights.as_ref().unwrap();
    let squares = (hidden.matmul(&filter.tr()) - target).square();
    let of_positions = squares.mean_dim(1, false, Kind::Double) * &weights;
    let sum = of_positions.sum(Kind::Double);
    (&sum * 0.7 / 50.0).backward();

    let mut filter_gradient = filter.zeros_like();
    let input = LayerInput {
        hidden: &hidden,
        filter: &filter,
        target,
    };
    let positions = Positions {
        labels: &case.labels,
        weights: case.weights.as_ref(),
        denominator: 50.0,
    };
    let output = layer_loss(&input, &positions, 0.7, &mut filter_gradient).unwrap();
    assert!((output.sum - sum.double_value(&[])).abs() < 1e-9);
    assert_close(&output.hidden_gradient, &hidden.grad(), "hidden states");
    assert_close(&filter_gradient, &filter.grad(), "filter");

    let narrow = target.narrow(1, 0, 5);
    let error = layer_loss(
        &LayerInput {
            target: &narrow,
            ..input
        },
        &positions,
        0.7,
        &mut filter_gradient,
    )
    .unwrap_err()
    .to_string();
    assert!(error.contains("a teacher's layer"), "{error}");
}

#[test]
fn the_same_inputs_give_the_same_bits() {
    let case = Case::new(10);
    let (one, one_weight, _) = case.head(Objective::default(), 4);
    let (two, two_weight, _) = case.head(Objective::default(), 4);
    assert_eq!(
        (one.ce_sum.to_bits(), one.kl_sum.to_bits()),
        (two.ce_sum.to_bits(), two.kl_sum.to_bits())
    );
    assert!(one.hidden_gradient.equal(&two.hidden_gradient) && one_weight.equal(&two_weight));
}

#[test]
fn the_evaluations_sum_is_the_heads() {
    let case = Case::new(11);
    let (output, ..) = case.head(Objective::default(), 4);
    for chunk in [1, 3, 23, 99] {
        let (sum, count) =
            cross_entropy_sum(&case.input(&case.student), &case.labels, VOCABULARY, chunk).unwrap();
        assert!((sum - output.ce_sum).abs() < 1e-10);
        assert_eq!(count, case.labels.ge(0).sum(Kind::Int64).int64_value(&[]));
    }
}

/// The head's error message for hidden states and labels that it cannot use.
fn said_of(hidden: &Tensor, case: &Case, labels: &Tensor) -> String {
    chunked_head(
        &HeadInput::new(hidden, &case.student[1]),
        None,
        &Positions {
            labels,
            weights: None,
            denominator: 1.0,
        },
        &HeadOptions {
            objective: Objective::default(),
            vocabulary: VOCABULARY,
            chunk: 4,
            detail: Detail::Sums,
        },
        &mut HeadGradients {
            weight: Some(&mut case.student[1].zeros_like()),
            bias: None,
            buffers: None,
        },
    )
    .unwrap_err()
    .to_string()
}

#[test]
fn inputs_that_do_not_belong_together_are_named() {
    let case = Case::new(12);
    let error = said_of(&case.teacher[0], &case, &case.labels);
    assert!(
        error.contains("the student's LM head") && error.contains("9]"),
        "{error}"
    );
    let mut case = case;
    case.student = case.student.map(|tensor| tensor.to_kind(Kind::Float));
    let labels = case.labels.full_like(VOCABULARY);
    let error = said_of(&case.student[0], &case, &labels);
    assert!(error.contains("past the vocabulary"), "{error}");
}
