//! `ddk bench`: how fast this machine distils these models, where the time goes, and what to change.
//!
//! Both models work on rows of random tokens of the configuration's shape; nothing is read from a corpus and nothing is written.

mod overlap;
mod products;
mod report;

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use ddk_engine::{Sequence, Student, StudentOptions, Teacher};
use ddk_model::{ModelConfig, Placement};
use ddk_settings::Settings;
use ddk_torch::{Lane, Turns, finish, mkl_kernels, parse_device};
use tch::{Device, Kind, Tensor};

use self::{
    products::Products,
    report::{Measured, Part},
};
use crate::{
    cli, config,
    progress::say,
    train::{self, required},
    wiring::{self, ModelFolders},
};

/// What is timed before the clock starts: libtorch chooses algorithms, memory is got from the system.
const WARM_UP: usize = 2;

/// Tokens do not matter to speed, as long as a head is asked for all kinds of columns.
const SEED: u64 = 0;

/// What a step is made of, with the seconds it takes.
#[derive(Debug, Default, Clone, Copy)]
struct StudentSeconds {
    forward: f64,
    head: f64,
    backward: f64,
    optimizer: f64,
}

impl StudentSeconds {
    fn sum(self) -> f64 {
        self.forward + self.head + self.backward + self.optimizer
    }
}

/// The rows of a step, as micro-batches.
struct Rows {
    rows: Vec<Vec<u32>>,
    micro_rows: usize,
}

impl Rows {
    fn random(settings: &Settings, vocabulary: i64) -> Self {
        let mut rng = ddk_order::stream(SEED, "bench", &[]);
        let row = |_| -> Vec<u32> {
            let tokens = 0..settings.corpus.sequence_length;
            let token = |_| ddk_order::below(&mut rng, vocabulary.unsigned_abs()) as u32;
            tokens.map(token).collect()
        };
        Self {
            rows: (0..settings.batch.rows).map(row).collect(),
            micro_rows: settings.batch.micro_rows as usize,
        }
    }

    fn micro_batches(&self) -> impl Iterator<Item = Vec<Sequence<'_>>> + Clone {
        let chunks = self.rows.chunks(self.micro_rows);
        chunks.map(|rows| rows.iter().map(|row| row.as_slice().into()).collect())
    }

    fn tokens(&self) -> f64 {
        self.rows.iter().map(Vec::len).sum::<usize>() as f64
    }

    fn predictions(&self) -> f64 {
        self.tokens() - self.rows.len() as f64
    }
}

/// Both models of a configuration, and what they work on.
pub struct Bench<'a> {
    settings: &'a Settings,
    folders: ModelFolders,
    options: StudentOptions,
    rows: Rows,
    /// Of each measurement.
    time: Duration,
}

pub fn run(args: &cli::Bench, out: &mut dyn Write) -> Result<()> {
    let settings = config::load(&args.config)?.settings;
    let measured = Bench::new(&settings, args.seconds)?.measure()?;
    match args.json {
        true => Ok(writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&measured)?
        )?),
        false => measured.write(out),
    }
}

impl<'a> Bench<'a> {
    /// Each measurement takes about so many seconds, and the loading of a model.
    pub fn new(settings: &'a Settings, seconds: f64) -> Result<Self> {
        let folders = ModelFolders::new(
            required(settings.teacher.model.clone(), "teacher.model")?,
            required(settings.student.model.clone(), "student.model")?,
        );
        let (teacher, student) = (
            ModelConfig::read(&folders.teacher)?,
            ModelConfig::read(&folders.student)?,
        );
        let vocabulary = teacher.vocab_size().min(student.vocab_size());
        Ok(Self {
            rows: Rows::random(settings, vocabulary),
            options: train::student_options(settings, vocabulary, None)?,
            settings,
            folders,
            time: Duration::from_secs_f64(seconds),
        })
    }

    /// Seconds of a step: the teacher's (0 where it is not asked), and the student's.
    pub fn seconds(&self) -> Result<(f64, f64)> {
        let teacher = match wiring::labels(self.settings) {
            true => alone("teacher", || self.teacher())?,
            false => 0.0,
        };
        Ok((teacher, alone("student", || self.student())?.sum()))
    }
}

impl Bench<'_> {
    fn measure(&self) -> Result<Measured> {
        let settings = self.settings;
        let labels = wiring::labels(settings);
        say("matrix products");
        let rate = |lane, threads, placement: Placement| {
            alone(lane, || {
                matrix_rate(threads, placement.compute, first(&placement))
            })
        };
        let (teacher, student) = (&settings.teacher, &settings.student);
        let of_teacher = wiring::teacher_placement(teacher)?;
        let teacher_rate = rate("teacher", teacher.threads, of_teacher)?;
        let of_student = wiring::student_placement(student)?;
        let student_rate = rate("student", student.threads, of_student)?;
        let products_of_teacher = match labels {
            true => alone("teacher", || self.products_of_teacher())?,
            false => 0.0,
        };
        let products = alone("student", || self.products_of_student(labels))?;
        say("the teacher alone");
        let teacher = match labels {
            true => alone("teacher", || self.teacher())?,
            false => 0.0,
        };
        say("the student alone");
        let student = alone("student", || self.student())?;
        say("both, overlapped");
        let (overlapped_seconds, student_waits) = self.overlapped(labels)?;

        let of_teacher = ModelConfig::read(&self.folders.teacher)?.flops();
        let of_student = ModelConfig::read(&self.folders.student)?.flops();
        let lengths = || self.rows.rows.iter().map(|row| row.len() as u64);
        let (positions, columns) = (lengths().sum(), self.options.vocabulary.unsigned_abs());
        let forward = of_student.hidden(lengths());
        // The teacher's head is applied beside the student's.
        let head = if labels {
            of_teacher.head(positions, columns)
        } else {
            0.0
        };
        let part = |name, seconds, operations, products| Part {
            name,
            seconds,
            operations,
            products,
        };
        Ok(Measured {
            rows: settings.batch.rows,
            sequence_length: settings.corpus.sequence_length,
            vocabulary: self.options.vocabulary,
            kernels: mkl_kernels(),
            teacher_rate,
            student_rate,
            teacher: labels.then(|| {
                let operations = of_teacher.hidden(lengths());
                part("teacher", teacher, operations, products_of_teacher)
            }),
            student: vec![
                part("forward", student.forward, forward, products.forward),
                part(
                    "heads and losses",
                    student.head,
                    head + 3.0 * of_student.head(positions, columns),
                    products.head,
                ),
                part(
                    "backward",
                    student.backward,
                    (2.0 + self.recomputed()) * forward,
                    products.backward,
                ),
                part("optimizer", student.optimizer, 0.0, 0.0),
            ],
            overlapped_seconds,
            student_waits,
            tokens_per_second: self.rows.tokens() / overlapped_seconds,
            advice: report::advice(settings.teacher.lanes, teacher, student),
        })
    }

    /// Forwards that a backward makes once more.
    fn recomputed(&self) -> f64 {
        f64::from(u8::from(self.options.recompute))
    }

    /// The products that a model's part of a step is made of.
    fn products<'b>(&self, model: &'b ModelConfig, kind: Kind, device: Device) -> Products<'b> {
        let length = self.settings.corpus.sequence_length as i64;
        let positions = self.rows.micro_rows as i64 * length;
        Products {
            model,
            positions,
            micro_batches: self.rows.micro_batches().count() as f64,
            chunk: self.options.chunk.min(positions),
            columns: self.options.vocabulary,
            kind,
            device,
        }
    }

    /// Seconds of a step's products in the teacher's layers.
    fn products_of_teacher(&self) -> Result<f64> {
        let _lane = Lane::enter(self.settings.teacher.threads);
        let placement = wiring::teacher_placement(&self.settings.teacher)?;
        let device = first(&placement);
        let model = ModelConfig::read(&self.folders.teacher)?;
        let products = self.products(&model, placement.compute, device);
        Ok(products.forward()?)
    }

    /// Seconds of a step's products on the student's lane, where the teacher's output matrix is applied too.
    fn products_of_student(&self, labels: bool) -> Result<StudentSeconds> {
        let _lane = Lane::enter(self.settings.student.threads);
        let placement = wiring::student_placement(&self.settings.student)?;
        let device = first(&placement);
        let model = ModelConfig::read(&self.folders.student)?;
        let products = self.products(&model, placement.compute, device);
        let forward = products.forward()?;
        let of_teacher = match labels {
            true => {
                let model = ModelConfig::read(&self.folders.teacher)?;
                let kind = wiring::kind(self.settings.teacher.dtype);
                self.products(&model, kind, device).logits()?
            }
            false => 0.0,
        };
        Ok(StudentSeconds {
            forward,
            head: of_teacher + products.logits()? + products.logits_backward()?,
            backward: products.backward()? + self.recomputed() * forward,
            optimizer: 0.0,
        })
    }

    fn teacher_lane(&self, turns: &Turns) -> Result<Lane> {
        let teacher = &self.settings.teacher;
        let mut devices = wiring::teacher_placement(teacher)?.devices;
        devices.push(parse_device(&self.settings.student.device)?);
        Ok(Lane::beside_others(teacher.threads, &devices, turns)?)
    }

    fn student_lane(&self, turns: &Turns) -> Result<Lane> {
        let student = &self.settings.student;
        let device = parse_device(&student.device)?;
        Ok(Lane::beside_others(student.threads, &[device], turns)?)
    }

    fn build_teacher(&self) -> Result<Teacher> {
        let student = parse_device(&self.settings.student.device)?;
        let placement = wiring::teacher_placement(&self.settings.teacher)?;
        let model = self.folders.frozen.model(&placement)?;
        Ok(wiring::build_teacher(model, student, None)?)
    }

    fn build_student(&self) -> Result<Student> {
        let options = self.options.clone();
        Ok(wiring::build_student(
            self.settings,
            &self.folders,
            options,
            None,
        )?)
    }

    /// Seconds of the forwards of a step.
    fn teacher(&self) -> Result<f64> {
        let lane = self.teacher_lane(&Turns::new(false))?;
        let teacher = self.build_teacher()?;
        let mut times = Vec::new();
        while !self.is_enough(&times) {
            let began = Instant::now();
            for micro in self.rows.micro_batches() {
                lane.work(|| teacher.label(&micro))??;
            }
            times.push(began.elapsed());
        }
        Ok(median(times.split_off(WARM_UP)))
    }

    fn is_enough(&self, times: &[Duration]) -> bool {
        times.len() > WARM_UP + 2 && times.iter().sum::<Duration>() > self.time
    }

    fn student(&self) -> Result<StudentSeconds> {
        let teacher = match wiring::labels(self.settings) {
            true => Some(self.build_teacher()?),
            false => None,
        };
        let lane = self.student_lane(&Turns::new(false))?;
        let mut student = self.build_student()?;
        let signals = match &teacher {
            Some(teacher) => {
                let all = self.rows.micro_batches();
                all.map(|micro| Ok(Some(teacher.label(&micro)?)))
                    .collect::<Result<Vec<_>>>()?
            }
            None => self.rows.micro_batches().map(|_| None).collect(),
        };
        drop(teacher);
        let (mut times, mut all) = (Vec::new(), Vec::new());
        while !self.is_enough(&times) {
            let began = Instant::now();
            let mut seconds = StudentSeconds::default();
            for (micro, signal) in self.rows.micro_batches().zip(&signals) {
                let predictions = self.rows.predictions();
                let done =
                    lane.work(|| student.accumulate(&micro, signal.as_ref(), predictions))??;
                seconds.forward += done.forward_seconds;
                seconds.head += done.head_seconds;
                seconds.backward += done.backward_seconds;
            }
            let update = Instant::now();
            lane.work(|| student.update(times.len() as u64 + 1))??;
            seconds.optimizer = update.elapsed().as_secs_f64();
            times.push(began.elapsed());
            all.push(seconds);
        }
        let all = all.split_off(WARM_UP);
        let of = |part: fn(&StudentSeconds) -> f64| {
            median(
                all.iter()
                    .map(|seconds| Duration::from_secs_f64(part(seconds)))
                    .collect(),
            )
        };
        Ok(StudentSeconds {
            forward: of(|seconds| seconds.forward),
            head: of(|seconds| seconds.head),
            backward: of(|seconds| seconds.backward),
            optimizer: of(|seconds| seconds.optimizer),
        })
    }
}

/// Does the work on a thread of that name: a lane's.
fn alone<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let done = thread.spawn_scoped(scope, work)?.join();
        done.map_err(|_| anyhow!("{name}: the measurement panicked"))?
    })
}

/// Where a model's first layers are.
fn first(placement: &Placement) -> Device {
    placement.devices.first().copied().unwrap_or(Device::Cpu)
}

/// Operations a second in products of large square matrices.
fn matrix_rate(threads: usize, kind: Kind, device: Device) -> Result<f64> {
    let side = if device == Device::Cpu { 1024 } else { 8192 };
    let _lane = Lane::enter(threads);
    let _no_grad = tch::no_grad_guard();
    let matrix = Tensor::f_rand([side, side], (kind, device))?;
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let began = Instant::now();
        let _product = matrix.f_mm(&matrix)?;
        finish(device)?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(2.0 * (side as f64).powi(3) / best)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(0.0, Duration::as_secs_f64)
}
