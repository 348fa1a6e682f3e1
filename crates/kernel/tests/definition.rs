//! Compares values with their definitions in f64, and gradients with finite differences of those values.

#![allow(clippy::unwrap_used, clippy::panic)]

use ddk_kernel::{Chunk, Divergence, Loss, Values, losses};

const DIVERGENCES: [Divergence; 10] = [
    Divergence::ForwardKl,
    Divergence::ReverseKl,
    Divergence::Jsd { beta: 0.1 },
    Divergence::Jsd { beta: 0.5 },
    Divergence::Jsd { beta: 1.0 },
    Divergence::SkewKl { skew: 0.1 },
    Divergence::SkewKl { skew: 0.0 },
    Divergence::SkewReverseKl { skew: 0.1 },
    Divergence::SkewReverseKl { skew: 0.9 },
    Divergence::TotalVariation,
];

fn log_softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|x| ((x - max) / temperature).exp()).sum();
    let all = logits.iter();
    all.map(|x| (x - max) / temperature - sum.ln()).collect()
}

/// Computes a divergence by its definition from log-probabilities.
fn by_definition(divergence: Divergence, s: &[f64], t: &[f64]) -> f64 {
    let kl = |one: &[f64], other: &[f64]| -> f64 {
        let pairs = one.iter().zip(other).filter(|(one, _)| one.exp() > 0.0);
        pairs.map(|(one, other)| one.exp() * (one - other)).sum()
    };
    let mix = |one: &[f64], share: f64, other: &[f64]| -> Vec<f64> {
        let pairs = one.iter().zip(other);
        pairs
            .map(|(one, other)| {
                let (one, other) = (one + share.ln(), other + (1.0 - share).ln());
                let max = one.max(other);
                max + ((one - max).exp() + (other - max).exp()).ln()
            })
            .collect()
    };
    match divergence {
        Divergence::ForwardKl => kl(t, s),
        Divergence::ReverseKl => kl(s, t),
        Divergence::Jsd { beta } => {
            let m = mix(t, beta, s);
            beta * kl(t, &m) + (1.0 - beta) * kl(s, &m)
        }
        Divergence::SkewKl { skew } => kl(t, &mix(t, skew, s)),
        Divergence::SkewReverseKl { skew } => kl(s, &mix(s, skew, t)),
        Divergence::TotalVariation => {
            let differences = s.iter().zip(t).map(|(s, t)| (s.exp() - t.exp()).abs());
            differences.sum::<f64>() / 2.0
        }
    }
}

/// Returns `ce + weight factor D` of one position, and its parts.
fn loss_of(student: &[f64], teacher: &[f64], label: usize, loss: &Loss) -> (f64, f64, f64) {
    let ce = -log_softmax(student, 1.0)[label];
    let d = loss.divergence.map_or(0.0, |divergence| {
        let [s, t] = [student, teacher].map(|logits| log_softmax(logits, loss.temperature));
        loss.factor * by_definition(divergence, &s, &t)
    });
    (ce + loss.weight * d, ce, d)
}

struct Case {
    columns: usize,
    student: Vec<f32>,
    teacher: Vec<f32>,
    labels: Vec<i64>,
    scales: Vec<f32>,
}

impl Case {
    /// Normal logits times `spread`; every third position is not scored.
    fn new(positions: usize, columns: usize, spread: f64) -> Self {
        let mut rng = ddk_order::stream(7, "kernel", &[columns as u64]);
        let mut logits = || -> Vec<f32> {
            let numbers = (0..positions * columns).map(|_| ddk_order::standard_normal(&mut rng));
            numbers.map(|x| (spread * x) as f32).collect()
        };
        let (student, teacher) = (logits(), logits());
        let label = |position: usize| match position % 3 {
            2 => -100,
            _ => (position * 5 % columns) as i64,
        };
        Self {
            columns,
            student,
            teacher,
            labels: (0..positions).map(label).collect(),
            scales: (0..positions).map(|at| 0.1 + 0.1 * at as f32).collect(),
        }
    }

    fn run(&self, loss: &Loss, threads: usize) -> (Vec<Values>, Vec<f32>) {
        let mut gradient = self.student.clone();
        let mut values = vec![Values::default(); self.labels.len()];
        let chunk = Chunk {
            student: &mut gradient,
            teacher: Some(&self.teacher),
            labels: &self.labels,
            scales: &self.scales,
            teacher_ce: true,
        };
        losses(chunk, loss, threads, &mut values);
        (values, gradient)
    }

    fn row(&self, of: &[f32], position: usize) -> Vec<f64> {
        let row = &of[position * self.columns..][..self.columns];
        row.iter().copied().map(f64::from).collect()
    }
}

fn every_loss() -> Vec<Loss> {
    let mut all = Vec::new();
    for (temperature, factor) in [(1.0, 1.0), (2.0, 1.0), (2.0, 4.0), (0.5, 1.0)] {
        let some = DIVERGENCES.map(Some).into_iter();
        all.extend(some.chain([None]).map(|divergence| Loss {
            divergence,
            weight: 0.7,
            temperature,
            factor,
        }));
    }
    all
}

fn check(case: &Case, difference: f64, slack: f64) {
    for loss in every_loss() {
        let (values, gradient) = case.run(&loss, 1);
        for (position, values) in values.iter().enumerate() {
            let got = case.row(&gradient, position);
            let Ok(label) = usize::try_from(case.labels[position]) else {
                assert_eq!(*values, Values::default());
                assert!(got.iter().all(|x| *x == 0.0));
                continue;
            };
            let [student, teacher] =
                [&case.student, &case.teacher].map(|logits| case.row(logits, position));
            let (_, ce, d) = loss_of(&student, &teacher, label, &loss);
            let teacher_ce = -log_softmax(&teacher, 1.0)[label];
            for (got, expected) in [
                (values.ce, ce),
                (values.divergence, d),
                (values.teacher_ce, teacher_ce),
            ] {
                let bound = 1e-6 * expected.abs().max(1.0);
                assert!(
                    (got - expected).abs() < bound,
                    "{loss:?}: {got}, {expected}"
                );
            }
            let scale = f64::from(case.scales[position]);
            let slope = |column: usize| {
                let at = |by: f64| {
                    let mut moved = student.clone();
                    moved[column] += by;
                    loss_of(&moved, &teacher, label, &loss).0
                };
                scale * (at(difference) - at(-difference)) / (2.0 * difference)
            };
            let expected: Vec<f64> = (0..case.columns).map(slope).collect();
            let largest = expected.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
            for (got, expected) in got.iter().zip(&expected) {
                let bound = 1e-6 * largest + slack;
                assert!(
                    (got - expected).abs() < bound,
                    "{loss:?}, position {position}: {got}, {expected}, largest {largest}"
                );
            }
        }
    }
}

#[test]
fn values_are_their_definitions_and_gradients_their_slopes() {
    check(&Case::new(7, 37, 2.0), 1e-4, 1e-8);
    // More than one block.
    check(&Case::new(2, 530, 1.0), 1e-4, 1e-8);
}

#[test]
fn logits_of_ten_thousand_are_no_trouble() {
    check(&Case::new(9, 37, 1e4), 1e-4, 2e-7);
    // The student's two most likely columns are the least likely for the teacher.
    let mut case = Case::new(3, 8, 1.0);
    for position in [0, 1] {
        let row = position * 8..position * 8 + 8;
        case.student[row.clone()].copy_from_slice(&[1e4, 9_999.5, 0., 0., 1., 2., 3., 4.]);
        case.teacher[row].copy_from_slice(&[-1e4, -9_999.2, 1e4, 0., 1., 2., 3., 4.]);
    }
    check(&case, 1e-4, 2e-7);
}

#[test]
fn rows_are_the_same_bits_for_any_number_of_threads_and_neighbors() {
    let case = Case::new(13, 700, 3.0);
    for loss in every_loss() {
        let bits = |gradient: Vec<f32>| gradient.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        let (values, gradient) = case.run(&loss, 1);
        let gradient = bits(gradient);
        for threads in [2, 3, 50] {
            let (others, other) = case.run(&loss, threads);
            assert!(others == values && bits(other) == gradient, "{threads}");
        }
        let alone = Case {
            student: case.student[700..1400].to_vec(),
            teacher: case.teacher[700..1400].to_vec(),
            labels: case.labels[1..2].to_vec(),
            scales: case.scales[1..2].to_vec(),
            columns: 700,
        };
        let (other, row) = alone.run(&loss, 1);
        assert!(other[0] == values[1] && bits(row) == gradient[700..1400]);
    }
}

#[test]
fn equal_models_have_no_divergence() {
    let mut case = Case::new(4, 600, 2.0);
    case.teacher = case.student.clone();
    for loss in every_loss() {
        let (values, gradient) = case.run(&loss, 1);
        let plain = Loss {
            divergence: None,
            ..loss
        };
        let (_, of_ce) = case.run(&plain, 1);
        assert!(values.iter().all(|values| values.divergence.abs() < 1e-7));
        for (one, other) in gradient.iter().zip(&of_ce) {
            assert!((one - other).abs() < 2e-7, "{loss:?}: {one}, {other}");
        }
    }
}

#[test]
fn what_is_not_a_number_shows() {
    let loss = Loss {
        divergence: Some(Divergence::ForwardKl),
        weight: 0.2,
        temperature: 1.0,
        factor: 1.0,
    };
    for broken in [f32::NAN, f32::INFINITY] {
        let mut case = Case::new(2, 40, 1.0);
        case.student[17] = broken;
        let (values, gradient) = case.run(&loss, 1);
        assert!(!values[0].ce.is_finite() || !values[0].divergence.is_finite());
        assert!(gradient[..40].iter().any(|x| x.is_nan()));
        assert!(values[1].ce.is_finite() && gradient[40..].iter().all(|x| x.is_finite()));
    }
}
