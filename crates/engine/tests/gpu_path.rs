//! Tests the GPU path, on the CPU or on the device that `DDK_TEST_DEVICE` names. For every objective, compares
//! whole steps with libtorch's operations, padded sizes and the fused AdamW with steps of the CPU kernels. Also
//! compares weights that are cast once per step with weights that are cast each time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ddk_corpus::Sequence;
use ddk_engine::{
    AdamWOptions, Parallel, Schedule, Shape, Student, StudentOptions, Teacher, Trainable,
};
use ddk_model::{Architecture, Export, Model, ModelConfig, Placement};
use ddk_objective::{Divergence, Objective};
use ddk_torch::on_gpu_path;
use tch::{Device, Kind, Tensor};

const VOCABULARY: i64 = 120;
const STEPS: u64 = 3;

/// The CPU, or the device that `make gpu-check` asks for.
fn device() -> Device {
    ddk_torch::test_device().unwrap()
}

fn model(device: Device, seed: u64, hidden_size: i64, tie: bool, compute: Kind) -> Model {
    let architecture = Architecture {
        // Room for the padded columns of the logits.
        vocab_size: 128,
        hidden_size,
        intermediate_size: 48,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 64,
        rope_theta: 1e4,
        tie_word_embeddings: tie,
    };
    let config = ModelConfig::llama(architecture, None).unwrap();
    let model = Model::random(config, seed, device).unwrap();
    match compute {
        Kind::Float => model,
        compute => {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model");
            model.save(&path, &Export::new(folder.path())).unwrap();
            let placement = Placement {
                compute,
                ..Placement::on(device, Kind::Float)
            };
            Model::load(&path, &placement).unwrap()
        }
    }
}

/// A student and its teacher.
struct Pair {
    teacher: Teacher,
    student: Student,
}

/// Lengths of the documents in the second micro-batch of each step, which is packed.
const PARTS: [u32; 3] = [4, 9, 7];

impl Pair {
    fn new(device: Device, objective: Objective, tie: bool, kind: Kind, recompute: bool) -> Self {
        let teacher = Teacher::new(model(device, 1, 48, false, kind), device);
        let head = teacher.model().head_for_products().unwrap();
        let options = StudentOptions {
            objective,
            vocabulary: VOCABULARY,
            chunk: 7,
            recompute,
            adamw: AdamWOptions::default(),
            clip_norm: 0.05,
            schedule: Schedule {
                shape: Shape::Cosine,
                peak: 1e-3,
                end: 1e-4,
                warmup_steps: 0,
                total_steps: 10,
            },
            filters: None,
            parallel: Parallel::default(),
        };
        let student =
            Student::new(model(device, 2, 32, tie, kind), options, Some(head), None).unwrap();
        Self { teacher, student }
    }

    /// Returns the losses and gradient norms of the steps. Calls `between` after each micro-batch.
    fn steps(&mut self, between: impl Fn(&Student)) -> Vec<f64> {
        let mut numbers = Vec::new();
        for step in 1..=STEPS {
            let row = |length: u64, seed: u64| -> Vec<u32> {
                let ids =
                    (0..length).map(|at| (at * 37 + seed * 11 + step * 5) % VOCABULARY as u64);
                ids.map(|id| id as u32).collect()
            };
            let plain = [row(20, 1).into(), row(13, 2).into()];
            let packed = Sequence {
                document_lengths: PARTS.to_vec(),
                ..row(20, 3).into()
            };
            let predictions = 19.0 + 12.0 + 17.0;
            for micro in [&plain.each_ref()[..], &[&packed]] {
                let output = self.teacher.label(micro).unwrap();
                let done = self.student.accumulate(micro, Some(&output), predictions);
                let done = done.unwrap();
                numbers.extend([done.ce, done.kl]);
                between(&self.student);
            }
            let report = self.student.update(step).unwrap();
            assert_eq!(report.skipped, None);
            numbers.push(report.grad_norm);
        }
        numbers
    }

    fn weights(&self) -> Tensor {
        let parameters = self.student.model().parameters().iter();
        let flat: Vec<Tensor> = parameters
            .map(|(_, of)| of.detach().reshape([-1]))
            .collect();
        Tensor::cat(&flat, 0).to_device(Device::Cpu).copy()
    }
}

fn objectives() -> Vec<Objective> {
    let divergences = [
        None,
        Some(Divergence::ForwardKl),
        Some(Divergence::ReverseKl),
        Some(Divergence::Jsd { beta: 0.3 }),
        Some(Divergence::SkewKl { skew: 0.1 }),
        Some(Divergence::SkewReverseKl { skew: 0.1 }),
        Some(Divergence::TotalVariation),
    ];
    let both = divergences.into_iter().flat_map(|divergence| {
        [1.0, 2.0].map(|temperature| Objective {
            divergence,
            gamma: 0.5,
            temperature,
            ..Objective::default()
        })
    });
    both.collect()
}

/// Runs the steps on both paths. Losses and norms must be within `of_numbers` of each other, and weights within
/// `of_change` of the size of their change.
fn compare(kind: Kind, of_numbers: f64, of_change: f64) {
    // Load CUDA before the first backward on the CPU.
    device();
    for (index, objective) in objectives().into_iter().enumerate() {
        // Tied weights and activation checkpointing alternate: neither depends on the objective.
        let (tie, recompute) = (index % 2 == 1, index % 4 > 1);
        let what = format!("{kind:?}, {objective:?}, tied {tie}, recomputed {recompute}");
        let mut on_cpu = Pair::new(Device::Cpu, objective, tie, kind, recompute);
        let before = on_cpu.weights();
        let expected = on_cpu.steps(|_| {});
        let (found, weights) = on_gpu_path(|| {
            let mut pair = Pair::new(device(), objective, tie, kind, recompute);
            let found = pair.steps(|_| {});
            (found, pair.weights())
        });
        for (found, expected) in found.iter().zip(&expected) {
            let off = (found - expected).abs() / expected.abs().max(1.0);
            assert!(off < of_numbers, "{what}: {found}, expected {expected}");
        }
        let norm = |difference: Tensor| difference.norm().double_value(&[]);
        let off = norm(weights - on_cpu.weights()) / norm(on_cpu.weights() - before);
        assert!(
            off < of_change,
            "{what}: weights are off by {off} of their change"
        );
    }
}

#[test]
fn steps_in_fp32_are_those_of_the_kernels() {
    compare(Kind::Float, 1e-5, 1e-2);
}

#[test]
fn steps_in_bf16_are_near_those_of_the_kernels() {
    compare(Kind::BFloat16, 1e-2, 0.2);
}

/// The cast adds no rounding of its own: casting for each micro-batch gives the same bits.
#[test]
fn weights_cast_once_a_step_give_the_bits_of_weights_cast_each_time() {
    for recompute in [false, true] {
        let pair = || {
            Pair::new(
                device(),
                Objective::default(),
                true,
                Kind::BFloat16,
                recompute,
            )
        };
        let (mut once, mut each_time) = (pair(), pair());
        let expected = each_time.steps(|student| student.model().weights_changed());
        assert_eq!(once.steps(|_| {}), expected);
        assert!(once.weights().equal(&each_time.weights()));
    }
}
