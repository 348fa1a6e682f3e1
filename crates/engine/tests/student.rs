//! Compares a student's step with autograd on dense logits, and tests what must never change it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{cell::RefCell, fs};

use ddk_corpus::Sequence;
use ddk_engine::{
    AdamWOptions, EngineError, Evaluation, Parallel, Schedule, Shape, Student, StudentOptions,
    Teacher, TeacherOutput, Trainable,
};
use ddk_model::{Architecture, Model, ModelConfig};
use ddk_objective::{Detail, Objective};
use ddk_run::SnapshotFile;
use tch::{Device, Kind, Tensor};

const VOCABULARY: i64 = 40;

fn model(seed: u64, hidden_size: i64, tie: bool) -> Model {
    let architecture = Architecture {
        vocab_size: VOCABULARY + 4,
        hidden_size,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 32,
        rope_theta: 1e4,
        tie_word_embeddings: tie,
    };
    Model::random(
        ModelConfig::llama(architecture, None).unwrap(),
        seed,
        Device::Cpu,
    )
    .unwrap()
}

fn options() -> StudentOptions {
    StudentOptions {
        objective: Objective {
            gamma: 0.5,
            ..Objective::default()
        },
        vocabulary: VOCABULARY,
        chunk: 7,
        recompute: false,
        adamw: AdamWOptions::default(),
        clip_norm: 0.05,
        schedule: Schedule {
            shape: Shape::Cosine,
            peak: 1e-2,
            end: 1e-3,
            warmup_steps: 2,
            total_steps: 10,
        },
        filters: None,
        parallel: Parallel::default(),
    }
}

fn rows() -> Vec<Sequence> {
    let mut next = token_ids();
    (0..4)
        .map(|row| (0..12 - row).map(|_| next()).collect::<Vec<u32>>().into())
        .collect()
}

/// Pseudorandom token ids from a small generator.
fn token_ids() -> impl FnMut() -> u32 {
    let mut state = 12_345_u64;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as u32 % VOCABULARY as u32
    }
}

fn views(rows: &[Sequence]) -> Vec<&Sequence> {
    rows.iter().collect()
}

fn predictions(rows: &[Sequence]) -> f64 {
    rows.iter().map(|row| row.tokens.len() - 1).sum::<usize>() as f64
}

struct Pair {
    teacher: Teacher,
    student: Student,
}

impl Pair {
    fn new(tie: bool) -> Self {
        let teacher = Teacher::new(model(1, 24, false), Device::Cpu);
        let head = teacher.model().head().shallow_clone();
        let student = Student::new(model(2, 16, tie), options(), Some(head), None).unwrap();
        Self { teacher, student }
    }

    fn step(&mut self, step: u64, rows: &[Sequence], micro_rows: usize) -> f64 {
        let denominator = predictions(rows);
        let mut loss = 0.0;
        for micro in views(rows).chunks(micro_rows) {
            let output = self.teacher.label(micro).unwrap();
            let done = self
                .student
                .accumulate(micro, Some(&output), denominator)
                .unwrap();
            loss += (done.ce + 0.5 * done.kl) / denominator;
        }
        assert_eq!(self.student.update(step).unwrap().skipped, None);
        loss
    }

    fn weights(&self) -> Vec<Tensor> {
        self.student
            .model()
            .parameters()
            .iter()
            .map(|(_, tensor)| tensor.detach().copy())
            .collect()
    }
}

fn largest_difference(a: &[Tensor], b: &[Tensor]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs().max().double_value(&[]))
        .fold(0.0, f64::max)
}

/// Loss and gradient norm of the dense computation: full logits, autograd, both models from the same seeds.
fn dense(tie: bool, rows: &[Sequence]) -> (f64, f64) {
    let (teacher, mut student) = (model(1, 24, false), model(2, 16, tie));
    student.set_trainable(true);
    let mut loss = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    for row in rows {
        let ids: Vec<i64> = row.tokens.iter().map(|&id| i64::from(id)).collect();
        let (tokens, length) = (Tensor::from_slice(&ids).unsqueeze(0), ids.len() as i64);
        let logits = |model: &Model| {
            let hidden = model.hidden(&tokens, None).unwrap();
            hidden
                .matmul(&model.head().tr())
                .narrow(2, 0, VOCABULARY)
                .narrow(1, 0, length - 1)
                .squeeze_dim(0)
        };
        let s = logits(&student).log_softmax(-1, Kind::Float);
        let t = logits(&teacher).log_softmax(-1, Kind::Float).detach();
        let labels = tokens.narrow(1, 1, length - 1).reshape([-1, 1]);
        let ce = -s.gather(1, &labels, false).sum(Kind::Float);
        let kl = (t.exp() * (&t - &s)).sum(Kind::Float);
        loss += (ce + kl * 0.5) / predictions(rows);
    }
    loss.backward();
    let squares: f64 = student
        .parameters()
        .iter()
        .map(|(_, tensor)| tensor.grad().square().sum(Kind::Double).double_value(&[]))
        .sum();
    (loss.double_value(&[0]), squares.sqrt())
}

#[test]
fn loss_and_gradient_are_those_of_dense_autograd_tied_or_not() {
    let rows = rows();
    for tie in [false, true] {
        let (loss, norm) = dense(tie, &rows);
        let mut pair = Pair::new(tie);
        let denominator = predictions(&rows);
        let mut got = 0.0;
        for micro in views(&rows).chunks(3) {
            let output = pair.teacher.label(micro).unwrap();
            let done = pair
                .student
                .accumulate(micro, Some(&output), denominator)
                .unwrap();
            got += (done.ce + 0.5 * done.kl) / denominator;
        }
        let report = pair.student.update(1).unwrap();
        assert!(
            (got - loss).abs() < 1e-5,
            "tied {tie}: loss {got} instead of {loss}"
        );
        assert!(
            (report.grad_norm / norm - 1.0).abs() < 1e-4,
            "tied {tie}: {} instead of {norm}",
            report.grad_norm
        );
        assert_eq!(report.learning_rate, 5e-3);
    }
}

#[test]
fn micro_batches_of_any_size_make_the_same_step() {
    let rows = rows();
    let mut whole = Pair::new(false);
    let loss = whole.step(1, &rows, 4);
    for micro_rows in [1, 3] {
        let mut parts = Pair::new(false);
        assert!((parts.step(1, &rows, micro_rows) - loss).abs() < 1e-6);
        let difference = largest_difference(&parts.weights(), &whole.weights());
        // AdamW's first update is sign-like: a gradient that is almost 0 may differ in its last bits.
        assert!(difference < 1e-4, "{difference}");
    }
}

#[test]
fn a_restored_student_goes_on_bit_for_bit() {
    let rows = rows();
    let mut whole = Pair::new(true);
    let mut stopped = Pair::new(true);
    for step in 1..=3 {
        whole.step(step, &rows, 2);
        stopped.step(step, &rows, 2);
    }
    let folder = tempfile::tempdir().unwrap();
    for SnapshotFile { name, write } in stopped.student.snapshot().unwrap() {
        let mut file = fs::File::create(folder.path().join(name)).unwrap();
        write(&mut file).unwrap();
    }
    // A snapshot is a copy: further training does not change it.
    stopped.step(4, &rows, 2);
    let head = stopped.teacher.model().head().shallow_clone();
    stopped.student = Student::new(
        model(9, 16, true),
        options(),
        Some(head),
        Some(folder.path()),
    )
    .unwrap();
    for step in 4..=6 {
        let (one, two) = (whole.step(step, &rows, 2), stopped.step(step, &rows, 2));
        assert_eq!(one.to_bits(), two.to_bits(), "step {step}");
    }
    assert_eq!(
        largest_difference(&whole.weights(), &stopped.weights()),
        0.0
    );
}

#[test]
fn what_is_not_finite_never_reaches_the_weights() {
    let rows = rows();
    let mut pair = Pair::new(false);
    let mut untouched = Pair::new(false);
    let micro = views(&rows);
    let output = pair.teacher.label(&micro).unwrap();
    let broken = TeacherOutput {
        hidden: output.hidden * f64::NAN,
        layers: Vec::new(),
    };
    let done = pair
        .student
        .accumulate(&micro, Some(&broken), 10.0)
        .unwrap();
    assert!(done.kl.is_nan());
    let before = pair.weights();
    let report = pair.student.update(1).unwrap();
    assert!(report.skipped.unwrap().contains("loss"));
    assert_eq!(largest_difference(&before, &pair.weights()), 0.0);
    // No trace of it is left: the next step equals that of a student that never saw the batch.
    assert_eq!(pair.step(2, &rows, 4), untouched.step(2, &rows, 4));
    assert_eq!(
        largest_difference(&pair.weights(), &untouched.weights()),
        0.0
    );
}

#[test]
fn perplexity_does_not_depend_on_the_batches_and_is_token_weighted() {
    let model = model(3, 16, false);
    let rows = rows();
    let domains = vec![rows.clone(), rows[2..].to_vec()];
    let never = |_, _| false;
    let on = |domains: &[Vec<Sequence>], batch_rows, chunk| Evaluation {
        validation: domains.to_vec().into(),
        batch_rows,
        vocabulary: VOCABULARY,
        chunk,
        group: None,
    };
    let measured = |evaluation: Evaluation| {
        let perplexities = evaluation.perplexities(&model, &never);
        perplexities.unwrap().unwrap()
    };
    let one = measured(on(&domains, 1, 5));
    let all = measured(on(&domains, 4, 64));
    for (one, all) in one.iter().zip(&all) {
        assert!((one / all - 1.0).abs() < 1e-5);
    }
    // By hand: exp of the mean over all predictions of the domain.
    let mut total = 0.0;
    for row in &rows {
        let single = measured(on(&[vec![row.clone()]], 1, 64));
        total += single[0].ln() * (row.tokens.len() - 1) as f64;
    }
    assert!((one[0] - (total / predictions(&rows)).exp()).abs() < 1e-4);
    // `between` gets the finished documents before each batch, out of those with a token to predict. It stops the
    // evaluation before the third batch.
    let mut domains = domains;
    domains[0].push(Sequence::from(vec![1]));
    let told = RefCell::new(Vec::new());
    let tell = |done, all| {
        told.borrow_mut().push((done, all));
        told.borrow().len() == 3
    };
    let cut = on(&domains, 3, 5).perplexities(&model, &tell).unwrap();
    assert_eq!(cut, None);
    let (first, all) = (rows.len() as u64, 2 * rows.len() as u64 - 2);
    assert_eq!(
        told.into_inner(),
        [(0, all), (3, all), (first, all)],
        "{first} documents in the first domain"
    );
}

#[test]
fn documents_packed_into_a_row_learn_as_rows_of_their_own() {
    let rows = rows();
    let (mut packed, mut alone) = (Pair::new(true), Pair::new(true));
    let tokens: Vec<u32> = rows.iter().flat_map(|row| row.tokens.clone()).collect();
    let document_lengths: Vec<u32> = rows.iter().map(|row| row.tokens.len() as u32).collect();
    let row = Sequence {
        document_lengths,
        ..tokens.into()
    };
    let denominator = predictions(&rows);
    let output = packed.teacher.label(&[&row]).unwrap();
    let done = packed
        .student
        .accumulate(&[&row], Some(&output), denominator)
        .unwrap();
    assert_eq!(done.targets as f64, denominator);
    assert_eq!(packed.student.update(1).unwrap().skipped, None);
    let loss = (done.ce + 0.5 * done.kl) / denominator;
    let expected = alone.step(1, &rows, 1);
    assert!((loss - expected).abs() < 1e-5, "{loss} {expected}");
    assert!(largest_difference(&packed.weights(), &alone.weights()) < 1e-5);
}

/// The cross-entropy of each prediction in a sequence, from dense logits in f64.
fn losses(model: &Model, row: &[u32]) -> Vec<f64> {
    let _no_grad = tch::no_grad_guard();
    let tokens: Vec<i64> = row.iter().map(|&token| i64::from(token)).collect();
    let hidden = model
        .hidden(&Tensor::from_slice(&tokens).unsqueeze(0), None)
        .unwrap()
        .squeeze_dim(0);
    let logits = hidden.matmul(&model.head().tr()).narrow(1, 0, VOCABULARY);
    let log = logits.to_kind(Kind::Double).log_softmax(-1, None);
    let next = tokens[1..].iter().enumerate();
    next.map(|(at, &token)| -log.double_value(&[at as i64, token]))
        .collect()
}

#[test]
fn sums_of_rows_are_those_of_each_row_alone_and_change_nothing() {
    let rows = rows();
    let denominator = predictions(&rows);
    for (gamma, wanted) in [
        (0.5, Detail::Positions),
        (0.5, Detail::PositionsAndTeacher),
        (0.0, Detail::PositionsAndTeacher),
    ] {
        let mut plain = Pair::new(false);
        plain.student = student(gamma, &plain.teacher);
        let mut asked = Pair::new(false);
        asked.student = student(gamma, &asked.teacher);
        asked.student.set_row_losses(wanted);
        let output = || plain.teacher.label(&views(&rows)).unwrap();
        let without = plain
            .student
            .accumulate(&views(&rows), Some(&output()), denominator)
            .unwrap();
        let with = asked
            .student
            .accumulate(&views(&rows), Some(&output()), denominator)
            .unwrap();
        assert!(without.sequences.is_empty());
        assert_eq!((without.ce, without.kl), (with.ce, with.kl));
        assert_eq!(with.sequences.len(), rows.len());
        for (row, sums) in rows.iter().zip(&with.sequences) {
            let of_student = losses(plain.student.model(), &row.tokens);
            let of_teacher = losses(plain.teacher.model(), &row.tokens);
            let ce: f64 = of_student.iter().sum();
            let each = of_student.iter().zip(&of_teacher);
            let excess: f64 = each
                .map(|(student, teacher)| (student - teacher).max(0.0))
                .sum();
            assert!((sums.ce - ce).abs() < 1e-5 * ce, "{} and {ce}", sums.ce);
            match wanted {
                Detail::PositionsAndTeacher => {
                    assert!((sums.excess - excess).abs() < 1e-5 * excess)
                }
                _ => assert_eq!(sums.excess, 0.0),
            }
        }
        plain.student.update(1).unwrap();
        asked.student.update(1).unwrap();
        for (plain, asked) in plain.weights().iter().zip(asked.weights()) {
            assert!(plain.equal(&asked));
        }
    }
}

fn student(gamma: f64, teacher: &Teacher) -> Student {
    let mut options = options();
    options.objective.gamma = gamma;
    let head = teacher.model().head().shallow_clone();
    Student::new(model(2, 16, false), options, Some(head), None).unwrap()
}

#[test]
fn the_excess_over_a_teacher_that_said_nothing_is_an_error() {
    let rows = rows();
    let mut pair = Pair::new(false);
    pair.student.set_row_losses(Detail::PositionsAndTeacher);
    let done = pair
        .student
        .accumulate(&views(&rows), None, predictions(&rows));
    assert!(matches!(done, Err(EngineError::NoTeacherOutput)));
}
