//! The head's gradients against autograd on dense logits, and the traps that well-known code falls into.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_objective::{
    Detail, Divergence, HeadGradients, HeadInput, HeadOptions, HeadOutput, LayerInput, Objective,
    Positions, chunked_head, cross_entropy_sum, layer_loss,
};
use tch::{Device, Kind, Tensor};

const POSITIONS: i64 = 23;
const VOCABULARY: i64 = 37;

/// Every divergence, at settings where nothing cancels.
const DIVERGENCES: [Divergence; 8] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.1 },
    Divergence::Jsd { beta: 0.5 },
    Divergence::Jsd { beta: 0.9 },
    Divergence::SkewKl { skew: 0.1 },
    Divergence::SkewReverseKl { skew: 0.1 },
    Divergence::TotalVariation,
];

/// A divergence by its definition, from log-probabilities `[positions, vocabulary]` in f64: `[positions]`.
fn by_definition(divergence: Divergence, s: &Tensor, t: &Tensor) -> Tensor {
    let kl = |one: &Tensor, other: &Tensor| {
        (one.exp() * (one - other)).sum_dim_intlist(1, false, Kind::Double)
    };
    let mix = |one: &Tensor, share: f64, other: &Tensor| {
        (one + share.ln()).logaddexp(&(other + (1.0 - share).ln()))
    };
    match divergence {
        Divergence::ForwardKl => kl(t, s),
        Divergence::ReverseKl => kl(s, t),
        Divergence::Jsd { beta } => {
            let m = mix(t, beta, s);
            kl(t, &m) * beta + kl(s, &m) * (1.0 - beta)
        }
        Divergence::SkewKl { skew } => kl(t, &mix(t, skew, s)),
        Divergence::SkewReverseKl { skew } => kl(s, &mix(s, skew, t)),
        Divergence::TotalVariation => {
            (s.exp() - t.exp())
                .abs()
                .sum_dim_intlist(1, false, Kind::Double)
                * 0.5
        }
    }
}

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
                weight: Some(&mut weight),
                bias: Some(&mut bias),
                buffers: None,
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

    /// CE sum, divergence sum, and autograd's gradients of (CE + gamma divergence) / 50, from dense logits by the definitions.
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
        let divergence = objective.divergence.unwrap();
        let kl = by_definition(divergence, &s, &log_teacher.detach());
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
        for divergence in DIVERGENCES {
            for (temperature, temperature_squared) in
                [(1.0, false), (2.0, false), (2.0, true), (0.5, true)]
            {
                let objective = Objective {
                    divergence: Some(divergence),
                    gamma: 0.3,
                    temperature,
                    temperature_squared,
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

/// The head on logits of their own: the hidden states are the logits, the output matrix is the identity. Values of each
/// position, and the gradient of the logits.
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

/// Against f64 from the same fp32 logits: values within 1e-6 max(1, |value|), gradients within 1e-6 of the row's largest; logits of
/// an ordinary size, late in training (almost the same), large, and ±1e4, where a naive softmax overflows.
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
                // Where the student is sure and right, p - 1 is known to fp32's own resolution only.
                let largest = expected.abs().amax([1], true).clamp_min(0.2);
                let worst = (error / largest).max().double_value(&[]);
                assert!(worst < 1e-6, "{what}: gradient off by {worst:e}");
            }
        }
    }
}

/// Whatever stands at a position that is not scored changes nothing.
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
            weight: Some(&mut case.student[1].zeros_like()),
            bias: None,
            buffers: None,
        },
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("the student's output matrix") && error.contains("9]"),
        "{error}"
    );
}
