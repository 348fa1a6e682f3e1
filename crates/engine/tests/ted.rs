//! Compares TED's two stages with dense autograd, and tests what must never change them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{fs, path::Path};

use ddk_corpus::Sequence;
use ddk_engine::{
    AdamWOptions, FilterStage, Filters, LayerPair, Parallel, Schedule, Shape, Student,
    StudentOptions, Teacher, Trainable, WEIGHTS_FILE,
};
use ddk_model::{Architecture, Export, LmHead, Model, ModelConfig};
use ddk_objective::Objective;
use ddk_run::SnapshotFile;
use tch::{Device, Kind, Tensor};
use tempfile::TempDir;

const VOCABULARY: i64 = 40;
const LAYER_WEIGHT: f64 = 0.7;
const GAMMA: f64 = 0.5;

const PAIRS: [LayerPair; 2] = [
    LayerPair {
        student: 1,
        teacher: 2,
    },
    LayerPair {
        student: 2,
        teacher: 3,
    },
];

fn model(seed: u64, hidden_size: i64, layers: i64) -> Model {
    let architecture = Architecture {
        vocab_size: VOCABULARY + 4,
        hidden_size,
        intermediate_size: 24,
        num_hidden_layers: layers,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 32,
        rope_theta: 1e4,
        tie_word_embeddings: false,
    };
    let config = ModelConfig::llama(architecture, None).unwrap();
    Model::random(config, seed, Device::Cpu).unwrap()
}

fn student_model() -> Model {
    model(2, 16, 2)
}

fn teacher_model() -> Model {
    model(1, 24, 3)
}

/// Sequences of different lengths, so that there is padding.
fn rows() -> Vec<Sequence> {
    let mut state = 12_345_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as u32 % VOCABULARY as u32
    };
    (0..4)
        .map(|row| {
            (0..12 - 2 * row)
                .map(|_| next())
                .collect::<Vec<u32>>()
                .into()
        })
        .collect()
}

fn views(rows: &[Sequence]) -> Vec<&Sequence> {
    rows.iter().collect()
}

fn predictions(rows: &[Sequence]) -> f64 {
    rows.iter().map(|row| row.tokens.len() - 1).sum::<usize>() as f64
}

fn options(filters: Option<Filters>, recompute: bool) -> StudentOptions {
    StudentOptions {
        objective: Objective {
            gamma: GAMMA,
            layer_weight: LAYER_WEIGHT,
            ..Objective::default()
        },
        vocabulary: VOCABULARY,
        chunk: 7,
        recompute,
        adamw: AdamWOptions::default(),
        clip_norm: 1.0,
        schedule: Schedule {
            shape: Shape::Cosine,
            peak: 1e-2,
            end: 1e-3,
            warmup_steps: 0,
            total_steps: 100,
        },
        filters,
        parallel: Parallel::default(),
    }
}

fn to_learn() -> Filters {
    Filters {
        pairs: PAIRS.to_vec(),
        learned: None,
    }
}

/// A first stage with the LM head of a saved teacher, and the teacher.
fn first_stage(folder: &Path) -> (FilterStage, Teacher) {
    let teacher = teacher_model();
    teacher.save(folder, &Export::new(folder)).unwrap();
    let output = LmHead::load(folder, Device::Cpu, Kind::Float).unwrap();
    let stage = FilterStage::new(
        student_model(),
        options(None, false),
        to_learn(),
        output,
        None,
    );
    let teacher = Teacher::new(teacher, Device::Cpu).with_filters(&to_learn());
    (stage.unwrap(), teacher.unwrap())
}

fn write(snapshot: Vec<SnapshotFile>, folder: &Path) {
    for SnapshotFile { name, write } in snapshot {
        write(&mut fs::File::create(folder.join(name)).unwrap()).unwrap();
    }
}

fn bytes(model: &Model) -> Vec<Vec<f32>> {
    let parameters = model.parameters().iter();
    parameters
        .map(|(_, parameter)| Vec::try_from(&parameter.detach().reshape([-1])).unwrap())
        .collect()
}

/// Hidden states and labels of a sequence. Each layer is `[length - 1, width]`, because the last position predicts
/// nothing.
fn of_row(model: &Model, layers: &[usize], row: &[u32]) -> (Tensor, Vec<Tensor>, Tensor) {
    let ids: Vec<i64> = row.iter().map(|&id| i64::from(id)).collect();
    let (tokens, length) = (Tensor::from_slice(&ids).unsqueeze(0), row.len() as i64);
    let scored = |hidden: &Tensor| hidden.squeeze_dim(0).narrow(0, 0, length - 1);
    let (hidden, layers) = model.hidden_and_layers(&tokens, None, layers).unwrap();
    let labels = tokens.narrow(1, 1, length - 1).reshape([-1, 1]);
    (scored(&hidden), layers.iter().map(scored).collect(), labels)
}

fn log_probabilities(hidden: &Tensor, head: &Tensor) -> Tensor {
    let logits = hidden.matmul(&head.tr()).narrow(1, 0, VOCABULARY);
    logits.log_softmax(-1, Kind::Float)
}

fn norm(gradients: impl Iterator<Item = Tensor>) -> f64 {
    gradients
        .map(|gradient| gradient.square().sum(Kind::Double).double_value(&[]))
        .sum::<f64>()
        .sqrt()
}

/// Reads the filters from a snapshot's file as autograd leaves.
fn leaves(folder: &Path, name: impl Fn(&LayerPair) -> String) -> Vec<Tensor> {
    let file = ddk_model::safetensors::read_tensors(&folder.join(WEIGHTS_FILE)).unwrap();
    let read = |pair: &LayerPair| {
        let name = name(pair);
        let shape = file.shape(&name).unwrap();
        file.tensor(&name, &shape).unwrap().set_requires_grad(true)
    };
    PAIRS.iter().map(read).collect()
}

#[test]
fn the_first_stage_is_dense_autograd_lowers_its_loss_and_leaves_both_models_alone() {
    let folder = TempDir::new().unwrap();
    let model_folder = folder.path().join("teacher");
    let (mut stage, teacher) = first_stage(&model_folder);
    let before = (bytes(stage.model()), bytes(teacher.model()));
    let rows = rows();
    let denominator = predictions(&rows);

    // By definition, on the full logits.
    write(stage.snapshot().unwrap(), folder.path());
    let of_student = leaves(folder.path(), LayerPair::of_student);
    let of_teacher = leaves(folder.path(), LayerPair::of_teacher);
    let output = LmHead::load(&model_folder, Device::Cpu, Kind::Float).unwrap();
    let mut loss = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    for row in &rows {
        let (_, student_layers, labels) = of_row(stage.model(), &[1, 2], &row.tokens);
        let (_, teacher_layers, _) = of_row(teacher.model(), &[2, 3], &row.tokens);
        let sides = [
            (&student_layers, &of_student),
            (&teacher_layers, &of_teacher),
        ];
        for (layers, filters) in sides {
            for (layer, filter) in layers.iter().zip(filters) {
                let filtered = layer.detach().matmul(&filter.tr());
                let log = log_probabilities(&output.normed(&filtered).unwrap(), output.head());
                loss -= log.gather(1, &labels, false).sum(Kind::Float) / (4.0 * denominator);
            }
        }
    }
    loss.backward();
    let expected_norm = norm(of_student.iter().chain(&of_teacher).map(Tensor::grad));

    let mut losses = Vec::new();
    for step in 1..=30 {
        let mut sum = 0.0;
        for micro in views(&rows).chunks(3) {
            let output = teacher.label(micro).unwrap();
            let done = stage.accumulate(micro, Some(&output), denominator).unwrap();
            assert_eq!((done.kl, done.layer), (0.0, 0.0));
            sum += done.ce / denominator;
        }
        let report = stage.update(step).unwrap();
        assert_eq!(report.skipped, None);
        if step == 1 {
            let expected = loss.double_value(&[0]);
            assert!((sum - expected).abs() < 1e-5, "{sum} instead of {expected}");
            let ratio = report.grad_norm / expected_norm;
            assert!((ratio - 1.0).abs() < 1e-4, "gradient: {ratio}");
        }
        losses.push(sum);
    }
    assert!(losses[29] < losses[0] - 0.05, "{losses:?}");
    assert!(before == (bytes(stage.model()), bytes(teacher.model())));
}

/// A file with filters after a few steps of training, and its folder.
fn learned() -> (TempDir, Filters) {
    let folder = TempDir::new().unwrap();
    let (mut stage, teacher) = first_stage(&folder.path().join("teacher"));
    let rows = rows();
    for step in 1..=3 {
        let output = teacher.label(&views(&rows)).unwrap();
        let denominator = predictions(&rows);
        stage
            .accumulate(&views(&rows), Some(&output), denominator)
            .unwrap();
        stage.update(step).unwrap();
    }
    write(stage.snapshot().unwrap(), folder.path());
    let filters = Filters {
        learned: Some(folder.path().join(WEIGHTS_FILE)),
        ..to_learn()
    };
    (folder, filters)
}

struct SecondStage {
    student: Student,
    teacher: Teacher,
}

impl SecondStage {
    fn new(filters: &Filters, recompute: bool) -> Self {
        let teacher = Teacher::new(teacher_model(), Device::Cpu);
        let teacher = teacher.with_filters(filters).unwrap();
        let head = teacher.model().head().shallow_clone();
        let options = options(Some(filters.clone()), recompute);
        let student = Student::new(student_model(), options, Some(head), None).unwrap();
        Self { student, teacher }
    }

    /// Returns the sums of cross-entropy, KL and layer distance, each divided by the number of predictions.
    fn accumulate(&mut self, rows: &[Sequence], micro_rows: usize) -> [f64; 3] {
        let denominator = predictions(rows);
        let mut sums = [0.0; 3];
        for micro in views(rows).chunks(micro_rows) {
            let output = self.teacher.label(micro).unwrap();
            let done = self
                .student
                .accumulate(micro, Some(&output), denominator)
                .unwrap();
            for (sum, part) in sums.iter_mut().zip([done.ce, done.kl, done.layer]) {
                *sum += part / denominator;
            }
        }
        sums
    }
}

#[test]
fn the_second_stage_is_dense_autograd_however_the_rows_are_padded() {
    let (folder, filters) = learned();
    let rows = rows();
    let denominator = predictions(&rows);
    let (teacher, mut student) = (teacher_model(), student_model());
    student.set_trainable(true);
    let of_student = leaves(folder.path(), LayerPair::of_student);
    let of_teacher = leaves(folder.path(), LayerPair::of_teacher);
    let mut terms = [0; 3].map(|_| Tensor::zeros([1], (Kind::Float, Device::Cpu)));
    for row in &rows {
        let (hidden, layers, labels) = of_row(&student, &[1, 2], &row.tokens);
        let (of_last, targets, _) = of_row(&teacher, &[2, 3], &row.tokens);
        let s = log_probabilities(&hidden, student.head());
        let t = log_probabilities(&of_last, teacher.head()).detach();
        terms[0] -= s.gather(1, &labels, false).sum(Kind::Float) / denominator;
        terms[1] += (t.exp() * (&t - &s)).sum(Kind::Float) / denominator;
        for index in 0..2 {
            let target = targets[index].matmul(&of_teacher[index].tr()).detach();
            let difference = layers[index].matmul(&of_student[index].tr()) - target;
            // Mean over the width (24) and the two pairs.
            terms[2] += difference.square().sum(Kind::Float) / (24.0 * 2.0 * denominator);
        }
    }
    let loss = &terms[0] + &terms[1] * GAMMA + &terms[2] * LAYER_WEIGHT;
    loss.backward();
    let parameters = student.parameters().iter().map(|(_, parameter)| parameter);
    let expected_norm = norm(parameters.chain(&of_student).map(Tensor::grad));

    for (recompute, micro_rows) in [(false, 4), (false, 1), (true, 4), (true, 3)] {
        let what = format!("recompute {recompute}, {micro_rows} rows at a time");
        let mut stage = SecondStage::new(&filters, recompute);
        let sums = stage.accumulate(&rows, micro_rows);
        for (sum, term) in sums.iter().zip(&terms) {
            let expected = term.double_value(&[0]);
            assert!((sum - expected).abs() < 1e-5, "{what}: {sum}, {expected}");
        }
        let report = stage.student.update(1).unwrap();
        let ratio = report.grad_norm / expected_norm;
        assert!((ratio - 1.0).abs() < 1e-4, "{what}: gradient {ratio}");
    }
}

#[test]
fn both_stages_go_on_bit_for_bit() {
    let rows = rows();
    let folder = TempDir::new().unwrap();
    let model_folder = folder.path().join("teacher");
    let (mut whole, teacher) = first_stage(&model_folder);
    let step = |stage: &mut FilterStage, step| {
        let output = teacher.label(&views(&rows)).unwrap();
        let done = stage.accumulate(&views(&rows), Some(&output), predictions(&rows));
        assert_eq!(stage.update(step).unwrap().skipped, None);
        done.unwrap().ce.to_bits()
    };
    for number in 1..=3 {
        step(&mut whole, number);
    }
    write(whole.snapshot().unwrap(), folder.path());
    let mut restored = FilterStage::new(
        model(2, 16, 2),
        options(None, false),
        to_learn(),
        LmHead::load(&model_folder, Device::Cpu, Kind::Float).unwrap(),
        Some(folder.path()),
    )
    .unwrap();
    for number in 4..=6 {
        assert_eq!(step(&mut whole, number), step(&mut restored, number));
    }

    let (_kept, filters) = learned();
    let mut whole = SecondStage::new(&filters, false);
    let step = |stage: &mut SecondStage, step| {
        let sums = stage.accumulate(&rows, 3);
        assert_eq!(stage.student.update(step).unwrap().skipped, None);
        sums.map(f64::to_bits)
    };
    for number in 1..=3 {
        step(&mut whole, number);
    }
    let checkpoint = TempDir::new().unwrap();
    write(whole.student.snapshot().unwrap(), checkpoint.path());
    let mut restored = SecondStage::new(&filters, false);
    let head = restored.teacher.model().head().shallow_clone();
    let with_filters = options(Some(filters.clone()), false);
    restored.student = Student::new(
        model(9, 16, 2),
        with_filters.clone(),
        Some(head),
        Some(checkpoint.path()),
    )
    .unwrap();
    for number in 4..=6 {
        assert_eq!(step(&mut whole, number), step(&mut restored, number));
    }

    // A checkpoint without filters is refused, and the error names the missing filter.
    let without = StudentOptions {
        filters: None,
        ..with_filters.clone()
    };
    let mut plain = Student::new(student_model(), without, None, None).unwrap();
    write(plain.snapshot().unwrap(), checkpoint.path());
    let error = Student::new(student_model(), with_filters, None, Some(checkpoint.path()));
    let error = error.unwrap_err();
    assert!(error.to_string().contains("filters.student.1-2"), "{error}");
}
