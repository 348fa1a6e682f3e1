//! The head's gradients against autograd on dense logits, and the traps that well-known code falls into.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, HeadOutput, Objective, Positions, chunked_head,
    cross_entropy_sum,
};
use tch::{Device, Kind, Tensor};

const POSITIONS: i64 = 23;
const VOCABULARY: i64 = 37;

/// A student of width 6 and a teacher of width 9, with padded output matrices of different heights.
struct Case {
    student: [Tensor; 3],
    teacher: [Tensor; 3],
    labels: Tensor,
    weights: Option<Tensor>,
    scale: f64,
    soft_cap: Option<f64>,
}

impl Case {
    fn new(seed: u64) -> Self {
        // libtorch's generator is one for the whole process, and tests run side by side.
        let mut rng = ddk_order::stream(seed, "case", &[]);
        let mut random = |shape: &[i64]| {
            let count: i64 = shape.iter().product();
            let values: Vec<f64> = (0..count)
                .map(|_| ddk_order::standard_normal(&mut rng))
                .collect();
            Tensor::from_slice(&values).reshape(shape)
        };
        let mut side = |width: i64, padded: i64| {
            [
                random(&[POSITIONS, width]),
                random(&[padded, width]),
                random(&[padded]),
            ]
        };
        let (student, teacher) = (side(6, VOCABULARY + 3), side(9, VOCABULARY + 11));
        let labels: Vec<i64> = (0..POSITIONS)
            .map(|_| match ddk_order::below(&mut rng, 10) {
                0..3 => -100,
                _ => ddk_order::below(&mut rng, VOCABULARY as u64) as i64,
            })
            .collect();
        Self {
            student,
            teacher,
            labels: Tensor::from_slice(&labels),
            weights: None,
            scale: 1.0,
            soft_cap: None,
        }
    }

    fn input<'a>(&self, side: &'a [Tensor; 3]) -> HeadInput<'a> {
        HeadInput {
            bias: Some(&side[2]),
            scale: self.scale,
            soft_cap: self.soft_cap,
            ..HeadInput::new(&side[0], &side[1])
        }
    }

    fn head(&self, objective: Objective, chunk: i64) -> (HeadOutput, Tensor, Tensor) {
        self.head_with(objective, chunk, Detail::Sums)
    }

    fn head_with(
        &self,
        objective: Objective,
        chunk: i64,
        detail: Detail,
    ) -> (HeadOutput, Tensor, Tensor) {
        let mut weight = self.student[1].zeros_like();
        let mut bias = self.student[2].zeros_like();
        let output = chunked_head(
            &self.input(&self.student),
            Some(&self.input(&self.teacher)),
            &Positions {
                labels: &self.labels,
                weights: self.weights.as_ref(),
                denominator: 50.0,
            },
            &HeadOptions {
                objective,
                vocabulary: VOCABULARY,
                chunk,
                detail,
            },
            &mut HeadGradients {
                weight: &mut weight,
                bias: Some(&mut bias),
            },
        )
        .unwrap();
        (output, weight, bias)
    }

    fn dense_logits(&self, [hidden, weight, bias]: &[Tensor; 3]) -> Tensor {
        let logits = (hidden.matmul(&weight.tr()) + bias) * self.scale;
        let logits = match self.soft_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        };
        logits.narrow(1, 0, VOCABULARY)
    }

    /// CE sum, KL sum, and autograd's gradients of (CE + gamma KL) / 50, from dense logits by the definitions.
    fn dense(&self, objective: Objective) -> (f64, f64, Vec<Tensor>) {
        let leaves: Vec<Tensor> = self
            .student
            .iter()
            .map(|tensor| tensor.detach().copy().set_requires_grad(true))
            .collect();
        let leaves: [Tensor; 3] = leaves.try_into().unwrap();
        let (student, teacher) = (self.dense_logits(&leaves), self.dense_logits(&self.teacher));
        let mask = self.labels.ge(0).to_kind(Kind::Double);
        let weights = match &self.weights {
            Some(weights) => mask * weights,
            None => mask,
        };
        let picked = student.log_softmax(-1, Kind::Double).gather(
            1,
            &self.labels.clamp_min(0).unsqueeze(1),
            false,
        );
        let ce = (-picked.squeeze_dim(1) * &weights).sum(Kind::Double);
        let t = objective.temperature;
        let s = (student / t).log_softmax(-1, Kind::Double);
        let log_teacher = (teacher / t).log_softmax(-1, Kind::Double);
        let kl = (log_teacher.exp() * (&log_teacher - s)).sum_dim_intlist(1, false, Kind::Double);
        let factor = if objective.temperature_squared {
            t * t
        } else {
            1.0
        };
        let kl = (kl * weights).sum(Kind::Double) * factor;
        ((&ce + &kl * objective.gamma) / 50.0).backward();
        (
            ce.double_value(&[]),
            kl.double_value(&[]),
            leaves.iter().map(Tensor::grad).collect(),
        )
    }
}

fn assert_close(got: &Tensor, expected: &Tensor, what: &str) {
    let difference = (got - expected).abs().max().double_value(&[]);
    assert!(difference < 1e-12, "{what}: {difference}");
}

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
        for (temperature, temperature_squared) in
            [(1.0, false), (2.0, false), (2.0, true), (0.5, true)]
        {
            let objective = Objective {
                gamma: 0.3,
                temperature,
                temperature_squared,
            };
            let (ce, kl, gradients) = case.dense(objective);
            for chunk in [1, 2, 5, 23, 64] {
                let (output, weight, bias) = case.head(objective, chunk);
                let what = format!(
                    "case {seed}, T {temperature}, squared {temperature_squared}, chunk {chunk}"
                );
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

/// The teacher's own cross-entropy comes where it is asked for, whatever the loss makes of the teacher, and changes nothing else.
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
    let case = Case::new(6);
    let mut weight = case.student[1].zeros_like();
    let input = HeadInput::new(&case.student[0], &case.student[1]);
    let output = chunked_head(
        &input,
        Some(&input),
        &Positions {
            labels: &case.labels,
            weights: None,
            denominator: 1.0,
        },
        &HeadOptions {
            objective: Objective::default(),
            vocabulary: VOCABULARY,
            chunk: 8,
            detail: Detail::Sums,
        },
        &mut HeadGradients {
            weight: &mut weight,
            bias: None,
        },
    )
    .unwrap();
    assert!(output.kl_sum.abs() < 1e-12, "{}", output.kl_sum);
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
                weight: &mut weight,
                bias: None,
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

/// Logits of ±1e4, where a naive softmax overflows.
#[test]
fn extreme_logits_stay_finite_and_right_in_fp32() {
    let case = Case::new(8);
    let hidden = (&case.student[0] * 5e3).to_kind(Kind::Float);
    let (matrix, teacher, teacher_matrix) = (
        case.student[1].to_kind(Kind::Float),
        (&case.teacher[0] * -5e3).to_kind(Kind::Float),
        case.teacher[1].to_kind(Kind::Float),
    );
    let mut weight = matrix.zeros_like();
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
            weight: &mut weight,
            bias: None,
        },
    )
    .unwrap();
    // The reference in f64 starts from the same fp32 logits.
    let logits = |hidden: &Tensor, matrix: &Tensor| {
        hidden
            .mm(&matrix.tr())
            .narrow(1, 0, VOCABULARY)
            .to_kind(Kind::Double)
            .log_softmax(-1, Kind::Double)
    };
    let (s, t) = (logits(&hidden, &matrix), logits(&teacher, &teacher_matrix));
    let mask = case.labels.ge(0).to_kind(Kind::Double);
    let kl = ((t.exp() * (&t - &s)).sum_dim_intlist(1, false, Kind::Double) * &mask)
        .sum(Kind::Double)
        .double_value(&[]);
    assert!(
        (output.kl_sum - kl).abs() < 1e-6 * kl.abs(),
        "{} instead of {kl}",
        output.kl_sum
    );
    assert!(
        output.ce_sum.is_finite() && output.hidden_gradient.isfinite().all().int64_value(&[]) == 1
    );
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
            weight: &mut weight,
            bias: None,
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

#[test]
fn inputs_that_do_not_belong_together_are_named() {
    let case = Case::new(12);
    let error = chunked_head(
        &HeadInput::new(&case.teacher[0], &case.student[1]),
        None,
        &Positions {
            labels: &case.labels,
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
            weight: &mut case.student[1].zeros_like(),
            bias: None,
        },
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("the student's output matrix") && error.contains("9]"),
        "{error}"
    );
}
