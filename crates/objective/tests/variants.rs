//! Compares GPU-specific computations with float64 on exactly the vocabulary's columns. GPUs pad columns to a
//! multiple of 128, compute losses by CUDA kernels or by libtorch's operations, and add the gradient of the LM head in
//! fp32. Covers every divergence, at temperatures 1 and 2, in fp32 and bf16. On the CPU, the kernels run as C++.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{path::Path, sync::LazyLock};

use ddk_cuda::{Source, Twin};
use ddk_objective::{
    Detail, Divergence, HeadGradients, HeadInput, HeadOptions, HeadOutput, Objective, Positions,
    chunked_head,
};
use ddk_torch::{on_gpu_path, with_kernels};
use tch::{Device, Kind, Tensor};

const POSITIONS: i64 = 37;
const VOCABULARY: i64 = 200;
/// Rows of the LM heads: room for the columns padded to 256.
const TABLE: i64 = 270;
const WIDTHS: [i64; 2] = [24, 40];

const DIVERGENCES: [Option<Divergence>; 9] = [
    None,
    Some(Divergence::ForwardKl),
    Some(Divergence::ReverseKl),
    Some(Divergence::Jsd { beta: 0.1 }),
    Some(Divergence::Jsd { beta: 0.5 }),
    Some(Divergence::Jsd { beta: 0.9 }),
    Some(Divergence::SkewKl { skew: 0.1 }),
    Some(Divergence::SkewReverseKl { skew: 0.1 }),
    Some(Divergence::TotalVariation),
];

/// The CPU, or the device that `make gpu-check` sets.
fn device() -> Device {
    ddk_torch::test_device().unwrap()
}

/// Multiples of 1/8 up to 1. Products of two have few enough bits to be added exactly in fp32, and each number fits
/// bf16.
fn eighths(shape: [i64; 2], seed: i64) -> Tensor {
    let eighth = |at: i64| ((at + seed) * 7919 % 1009 % 17 - 8) as f32 / 8.0;
    let eighths: Vec<f32> = (0..shape[0] * shape[1]).map(eighth).collect();
    Tensor::from_slice(&eighths)
        .reshape(shape)
        .to_device(device())
}

/// Runs `work` as a GPU would, with the kernels or with libtorch's operations.
fn as_gpu<T>(kernels: bool, work: impl FnOnce() -> T) -> T {
    static TWIN: LazyLock<Twin> = LazyLock::new(|| {
        Twin::compile(Source::Loss, Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
    });
    if kernels && device() == Device::Cpu {
        // SAFETY: the launches are those of the crate, with addresses on the CPU.
        let run = |_, launch: &ddk_cuda::Launch| unsafe { TWIN.run(launch) };
        return with_kernels(run, || on_gpu_path(work));
    }
    on_gpu_path(work)
}

struct Side {
    hidden: Tensor,
    weight: Tensor,
}

impl Side {
    fn new(width: i64, seed: i64, kind: Kind) -> Self {
        Self {
            hidden: eighths([POSITIONS, width], seed).to_kind(kind),
            weight: eighths([TABLE, width], seed + 5).to_kind(kind),
        }
    }

    /// The logits that the head works with, in f64. For bf16 inputs, they are first rounded to bf16.
    fn logits(&self) -> Tensor {
        let weight = self.weight.narrow(0, 0, VOCABULARY);
        self.hidden.mm(&weight.tr()).to_kind(Kind::Double)
    }
}

fn labels() -> Tensor {
    let labels = (0..POSITIONS).map(|at| {
        if at % 5 == 3 {
            -100
        } else {
            at * 11 % VOCABULARY
        }
    });
    Tensor::from_slice(&labels.collect::<Vec<i64>>()).to_device(device())
}

fn head(
    [student, teacher]: [&HeadInput<'_>; 2],
    objective: Objective,
    weight_gradient: &mut Tensor,
) -> HeadOutput {
    let labels = labels();
    let scored = labels.ge(0).sum(Kind::Double).double_value(&[]);
    chunked_head(
        student,
        Some(teacher),
        &Positions {
            labels: &labels,
            weights: None,
            denominator: scored,
        },
        &HeadOptions {
            objective,
            vocabulary: VOCABULARY,
            chunk: 10,
            detail: Detail::PositionsAndTeacher,
        },
        &mut HeadGradients {
            weight: Some(weight_gradient),
            bias: None,
            buffers: None,
        },
    )
    .unwrap()
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// The largest difference, relative to the largest number in the expected tensor.
fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    largest(&(found.to_kind(Kind::Double) - expected)) / largest(expected).max(1e-30)
}

fn compare(kernels: bool, kind: Kind, objective: Objective, of_values: f64, of_gradients: f64) {
    let [student, teacher] =
        [(WIDTHS[0], 1), (WIDTHS[1], 2)].map(|(width, seed)| Side::new(width, seed, kind));
    // The reference uses the identity as the LM head, so that the gradient is that of the logits.
    let identity = Tensor::eye(VOCABULARY, (Kind::Double, device()));
    let [of_student, of_teacher] = [&student, &teacher].map(Side::logits);
    let expected = head(
        [
            &HeadInput::new(&of_student, &identity),
            &HeadInput::new(&of_teacher, &identity),
        ],
        objective,
        &mut identity.zeros_like(),
    );
    let hidden = student.hidden.to_kind(Kind::Double);
    let weight = student
        .weight
        .to_kind(Kind::Double)
        .narrow(0, 0, VOCABULARY);

    let mut found_gradient = Tensor::zeros([TABLE, WIDTHS[0]], (Kind::Float, device()));
    let found = as_gpu(kernels, || {
        head(
            [
                &HeadInput::new(&student.hidden, &student.weight),
                &HeadInput::new(&teacher.hidden, &teacher.weight),
            ],
            objective,
            &mut found_gradient,
        )
    });
    let what = format!("{kind:?}, {objective:?}, kernels: {kernels}");
    let near = |found: f64, expected: f64, name: &str| {
        let off = (found - expected).abs() / expected.abs().max(1.0);
        assert!(
            off < of_values,
            "{what}: {name} is {found}, expected {expected}"
        );
    };
    near(found.ce_sum, expected.ce_sum, "cross-entropy");
    near(found.kl_sum, expected.kl_sum, "divergence");
    let (found_values, expected_values) =
        (found.per_position.unwrap(), expected.per_position.unwrap());
    for (name, found, expected) in [
        ("ce", found_values.ce, expected_values.ce),
        (
            "divergence",
            found_values.divergence,
            expected_values.divergence,
        ),
        (
            "teacher's ce",
            found_values.teacher_ce.unwrap(),
            expected_values.teacher_ce.unwrap(),
        ),
    ] {
        let worst = largest(&(found.to_kind(Kind::Double) - &expected));
        let scale = largest(&expected).max(1.0);
        assert!(
            worst < of_values * scale,
            "{what}: {name} of a position is off by {worst}"
        );
    }
    let of_logits = expected.hidden_gradient;
    for (name, found, expected) in [
        (
            "hidden states",
            &found.hidden_gradient,
            of_logits.mm(&weight),
        ),
        (
            "output matrix",
            &found_gradient.narrow(0, 0, VOCABULARY),
            of_logits.tr().mm(&hidden),
        ),
    ] {
        let off = difference(found, &expected);
        assert!(
            off < of_gradients,
            "{what}: gradient of the {name} is off by {off}"
        );
    }
    let past = found_gradient.narrow(0, VOCABULARY, TABLE - VOCABULARY);
    assert_eq!(largest(&past), 0.0, "{what}: rows past the vocabulary");
}

/// Compares gradients of the logits themselves. The identity is the LM head on both paths, with other rows below it
/// for the padding. The tolerance is 1e-6 of the largest gradient in each row.
fn compare_logits(kernels: bool, objective: Objective) {
    let [student, teacher] = [1, 2].map(|seed| eighths([POSITIONS, VOCABULARY], seed) * 4.0);
    let identity = Tensor::eye(VOCABULARY, (Kind::Float, device()));
    let padding = eighths([TABLE - VOCABULARY, VOCABULARY], 3);
    let table = Tensor::cat(&[&identity, &padding], 0);
    let found = as_gpu(kernels, || {
        head(
            [&student, &teacher]
                .map(|logits| HeadInput::new(logits, &table))
                .each_ref(),
            objective,
            &mut table.zeros_like(),
        )
    });
    let double = |tensor: &Tensor| tensor.to_kind(Kind::Double);
    let (identity, student, teacher) = (double(&identity), double(&student), double(&teacher));
    let expected = head(
        [&student, &teacher]
            .map(|logits| HeadInput::new(logits, &identity))
            .each_ref(),
        objective,
        &mut identity.zeros_like(),
    );
    let expected = expected.hidden_gradient;
    let off = (double(&found.hidden_gradient) - &expected)
        .abs()
        .amax([1], false);
    // Unscored rows are 0 in both.
    let scale = expected.abs().amax([1], false).clamp_min(1e-30);
    let worst = largest(&(off / scale));
    assert!(
        worst < 1e-6,
        "{objective:?}, kernels: {kernels}: off by {worst} of a row's largest gradient"
    );
}

#[test]
fn in_fp32_gradients_of_the_logits_are_those_of_f64() {
    for objective in objectives() {
        compare_logits(false, objective);
        compare_logits(true, objective);
    }
}

fn objectives() -> impl Iterator<Item = Objective> {
    DIVERGENCES.into_iter().flat_map(|divergence| {
        [(1.0, false), (2.0, false), (2.0, true)].map(
            |(temperature, scale_by_temperature_squared)| Objective {
                divergence,
                gamma: 0.2,
                temperature,
                scale_by_temperature_squared,
                ..Objective::default()
            },
        )
    })
}

#[test]
fn in_fp32_every_objective_is_that_of_f64_on_the_vocabulary_alone() {
    for objective in objectives() {
        compare(false, Kind::Float, objective, 1e-6, 2e-6);
        compare(true, Kind::Float, objective, 1e-6, 2e-6);
    }
}

/// Softmaxes are in fp32, whatever the dtype of the matmuls. Gradients are rounded to bf16 once, for the backward
/// matmuls.
#[test]
fn in_bf16_only_the_products_are_rounded() {
    for objective in objectives() {
        compare(false, Kind::BFloat16, objective, 1e-6, 1e-2);
        compare(true, Kind::BFloat16, objective, 1e-6, 1e-2);
    }
}

/// On a GPU, the other tests have compared the kernels only if DDK uses them.
#[test]
fn a_gpu_computes_with_the_kernels() {
    if device() == Device::Cpu {
        return;
    }
    compare(true, Kind::Float, Objective::default(), 1e-6, 2e-6);
    let is_known = || panic!("the comparison above has asked");
    assert!(ddk_torch::has_kernels(device(), Source::Loss, is_known));
}
