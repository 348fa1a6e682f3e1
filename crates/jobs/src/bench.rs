//! `ddk bench`: how fast this machine distils these models, where the time goes, and what to change.
//!
//! Both models work on rows of random tokens of the configuration's shape; nothing is read from a corpus and
//! nothing is written.

mod overlap;
mod products;
mod report;

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use ddk_corpus::Sequence;
use ddk_engine::{Learner, Student, StudentOptions, Teacher};
use ddk_model::{ModelConfig, Placement};
use ddk_run::StepPhase;
use ddk_settings::Settings;
use ddk_torch::{Lane, Turns, mkl_kernels, parse_device};
use tch::{Device, Kind, Tensor};

use self::{
    products::Products,
    report::{Measured, Part},
};
use crate::{
    args,
    config::{self, required},
    faults::Faults,
    hint::Hint,
    phase::Phase,
    progress::say,
    signals::Signals,
    train::options,
    wiring::{self, ModelFolders},
};

/// What is timed before the clock starts: libtorch chooses algorithms, memory is got from the system.
const WARM_UP: usize = 2;

/// So often steps and their products alone take turns, so that a machine that is slower for a while is so for both.
const TURNS: u32 = 5;

/// Tokens do not matter to speed, as long as a head is asked for all kinds of columns.
const SEED: u64 = 0;

/// A day for one measurement is too long for anybody.
const MOST_SECONDS: f64 = 86_400.0;

/// What a step is made of, with the seconds it takes; the teacher's has a forward alone.
#[derive(Debug, Default, Clone, Copy)]
struct Seconds {
    forward: f64,
    head: f64,
    backward: f64,
    optimizer: f64,
}

impl Seconds {
    fn sum(self) -> f64 {
        self.forward + self.head + self.backward + self.optimizer
    }

    /// Of each part.
    fn medians(all: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| median(all.iter().map(part).collect());
        Self {
            forward: of(|seconds| seconds.forward),
            head: of(|seconds| seconds.head),
            backward: of(|seconds| seconds.backward),
            optimizer: of(|seconds| seconds.optimizer),
        }
    }
}

/// One lane's steps and what they could be at best.
#[derive(Debug, Default)]
struct Measurement {
    step: Seconds,
    /// The matrix products of a step alone.
    products: Seconds,
    /// Operations a second in large square products.
    rate: f64,
}

impl Measurement {
    /// Of `steps`, which calls what it is given between steps; the products come from `alone`.
    fn of(
        placement: &Placement,
        alone: impl Fn() -> Result<Seconds>,
        steps: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<Seconds>,
    ) -> Result<Self> {
        let (mut rates, mut products) = (Vec::new(), Vec::new());
        let step = steps(&mut || {
            rates.push(matrix_rate(placement.compute, first(placement))?);
            products.push(alone()?);
            Ok(())
        })?;
        Ok(Self {
            step,
            products: Seconds::medians(&products),
            rate: median(rates),
        })
    }
}

/// The rows of a step, as micro-batches.
struct Rows {
    rows: Vec<Sequence>,
    micro_rows: usize,
}

impl Rows {
    fn random(settings: &Settings, vocabulary: i64) -> Self {
        let mut rng = ddk_order::stream(SEED, "bench", &[]);
        let row = |_| -> Sequence {
            let tokens = 0..settings.corpus.sequence_length;
            let token = |_| ddk_order::below(&mut rng, vocabulary.unsigned_abs()) as u32;
            tokens.map(token).collect::<Vec<u32>>().into()
        };
        Self {
            rows: (0..settings.batch.rows).map(row).collect(),
            micro_rows: settings.batch.micro_rows as usize,
        }
    }

    fn micro_batches(&self) -> impl Iterator<Item = Vec<&Sequence>> + Clone {
        let chunks = self.rows.chunks(self.micro_rows);
        chunks.map(|rows| rows.iter().collect())
    }

    fn tokens(&self) -> f64 {
        self.rows.iter().map(|row| row.tokens.len()).sum::<usize>() as f64
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

/// Measures teacher, student and both together, and prints where the time goes.
///
/// # Errors
/// The settings are wrong, or a model cannot be loaded or run.
pub fn run(args: &args::Bench, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let settings = config::load(&args.config)?.settings;
    signals.begin(Phase::Bench, &*Faults::parse(&settings.faults.plan)?)?;
    if !(args.seconds.is_finite() && (0.0..=MOST_SECONDS).contains(&args.seconds)) {
        return Err(anyhow!(
            "--seconds is {}, expected 0 to {MOST_SECONDS}",
            args.seconds
        ))
        .usage();
    }
    let measured = Bench::new(&settings, args.seconds)?.measure()?;
    if args.json {
        Ok(writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&measured)?
        )?)
    } else {
        measured.write(out)
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
            options: options::of_student(settings, vocabulary, None)?,
            settings,
            folders,
            time: Duration::from_secs_f64(seconds),
        })
    }

    /// Seconds of a step: the teacher's (0 where it is not asked), and the student's.
    pub fn seconds(&self) -> Result<(f64, f64)> {
        let teacher = if wiring::needs_teacher_output(self.settings) {
            alone("teacher", || self.teacher(|| Ok(())))?.sum()
        } else {
            0.0
        };
        Ok((teacher, alone("student", || self.student(|| Ok(())))?.sum()))
    }
}

impl Bench<'_> {
    fn measure(&self) -> Result<Measured> {
        let settings = self.settings;
        let needs_output = wiring::needs_teacher_output(settings);
        say("the teacher alone");
        let teacher = if needs_output {
            alone("teacher", || self.measure_teacher())?
        } else {
            Measurement::default()
        };
        say("the student alone");
        let student = alone("student", || self.measure_student(needs_output))?;
        say("both, overlapped");
        let (overlapped_seconds, student_waits) = self.overlapped(needs_output)?;

        let of_teacher = ModelConfig::read(&self.folders.teacher)?.flops();
        let of_student = ModelConfig::read(&self.folders.student)?.flops();
        let lengths = || self.rows.rows.iter().map(|row| row.tokens.len() as u64);
        let (positions, columns) = (lengths().sum(), self.options.vocabulary.unsigned_abs());
        let forward = of_student.hidden(lengths());
        // The teacher's head is applied beside the student's.
        let head = if needs_output {
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
        let Measurement { step, products, .. } = student;
        Ok(Measured {
            rows: settings.batch.rows,
            sequence_length: settings.corpus.sequence_length,
            vocabulary: self.options.vocabulary,
            kernels: mkl_kernels(),
            teacher_rate: needs_output.then_some(teacher.rate),
            student_rate: student.rate,
            teacher: needs_output.then(|| {
                let operations = of_teacher.hidden(lengths());
                part(
                    "teacher",
                    teacher.step.sum(),
                    operations,
                    teacher.products.sum(),
                )
            }),
            student: vec![
                part("forward", step.forward, forward, products.forward),
                part(
                    "heads and losses",
                    step.head,
                    head + 3.0 * of_student.head(positions, columns),
                    products.head,
                ),
                part(
                    "backward",
                    step.backward,
                    (2.0 + self.recomputed()) * forward,
                    products.backward,
                ),
                part("optimizer", step.optimizer, 0.0, 0.0),
            ],
            overlapped_seconds,
            student_waits,
            tokens_per_second: self.rows.tokens() / overlapped_seconds,
            advice: report::advice(settings.teacher.lanes, teacher.step.sum(), step),
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
            length,
            positions,
            micro_batches: self.rows.micro_batches().count() as f64,
            chunk: self.options.chunk.min(positions),
            columns: self.options.vocabulary,
            kind,
            device,
        }
    }

    /// The teacher's steps, and their products in its layers.
    fn measure_teacher(&self) -> Result<Measurement> {
        let placement = wiring::teacher_placement(&self.settings.teacher, 0)?;
        let model = ModelConfig::read(&self.folders.teacher)?;
        let products = self.products(&model, placement.compute, first(&placement));
        let alone = || {
            Ok(Seconds {
                forward: products.forward()?,
                ..Seconds::default()
            })
        };
        Measurement::of(&placement, alone, |between| self.teacher(between))
    }

    /// The student's steps, and the products on its lane, where the teacher's output matrix is applied too.
    fn measure_student(&self, needs_output: bool) -> Result<Measurement> {
        let placement = wiring::student_placement(&self.settings.student)?;
        let device = first(&placement);
        let model = ModelConfig::read(&self.folders.student)?;
        let products = self.products(&model, placement.compute, device);
        let of_teacher = ModelConfig::read(&self.folders.teacher)?;
        let kind = wiring::kind(self.settings.teacher.dtype);
        let of_teacher = needs_output.then(|| self.products(&of_teacher, kind, device));
        let alone = || {
            let forward = products.forward()?;
            let logits_of_teacher = match &of_teacher {
                Some(products) => products.logits()?,
                None => 0.0,
            };
            Ok(Seconds {
                forward,
                head: logits_of_teacher + products.logits()? + products.logits_backward()?,
                backward: products.backward()? + self.recomputed() * forward,
                optimizer: 0.0,
            })
        };
        Measurement::of(&placement, alone, |between| self.student(between))
    }

    fn teacher_lane(&self, number: usize, turns: &Turns) -> Result<Lane> {
        let teacher = &self.settings.teacher;
        let mut devices = wiring::teacher_placement(teacher, number)?.devices;
        devices.push(parse_device(&self.settings.student.device)?);
        Ok(Lane::beside_others(teacher.threads, &devices, turns)?)
    }

    fn student_lane(&self, turns: &Turns) -> Result<Lane> {
        let student = &self.settings.student;
        let device = parse_device(&student.device)?;
        Ok(Lane::beside_others(student.threads, &[device], turns)?)
    }

    fn build_teacher(&self, lane: usize) -> Result<Teacher> {
        let student = parse_device(&self.settings.student.device)?;
        let placement = wiring::teacher_placement(&self.settings.teacher, lane)?;
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

    /// Of the forwards of a step; `between` is called now and then.
    fn teacher(&self, between: impl FnMut() -> Result<()>) -> Result<Seconds> {
        let lane = self.teacher_lane(0, &Turns::new(false))?;
        let teacher = self.build_teacher(0)?;
        let step = || {
            let began = Instant::now();
            for micro in self.rows.micro_batches() {
                lane.work(|| teacher.label(&micro))??;
            }
            Ok(Seconds {
                forward: began.elapsed().as_secs_f64(),
                ..Seconds::default()
            })
        };
        self.timed(step, between)
    }

    /// As [`Self::teacher`], of the student's step.
    fn student(&self, between: impl FnMut() -> Result<()>) -> Result<Seconds> {
        let teacher = wiring::needs_teacher_output(self.settings)
            .then(|| self.build_teacher(0))
            .transpose()?;
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
        let mut number = 0;
        let step = || {
            let mut seconds = Seconds::default();
            for (micro, signal) in self.rows.micro_batches().zip(&signals) {
                let predictions = self.rows.predictions();
                let done =
                    lane.work(|| student.accumulate(&micro, signal.as_ref(), predictions))??;
                seconds.forward += done.seconds[&StepPhase::Forward];
                seconds.head += done.seconds[&StepPhase::Head];
                seconds.backward += done.seconds[&StepPhase::Backward];
            }
            number += 1;
            let update = Instant::now();
            lane.work(|| student.update(number))??;
            seconds.optimizer = update.elapsed().as_secs_f64();
            Ok(seconds)
        };
        self.timed(step, between)
    }

    /// Medians of steps, in turns with `between`.
    fn timed(
        &self,
        mut step: impl FnMut() -> Result<Seconds>,
        mut between: impl FnMut() -> Result<()>,
    ) -> Result<Seconds> {
        for _ in 0..WARM_UP {
            step()?;
        }
        let mut steps = Vec::new();
        for _ in 0..TURNS {
            between()?;
            let began = Instant::now();
            steps.push(step()?);
            while began.elapsed() < self.time / TURNS {
                steps.push(step()?);
            }
        }
        Ok(Seconds::medians(&steps))
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

/// Operations a second in products of large square matrices, on the threads of the calling lane.
fn matrix_rate(kind: Kind, device: Device) -> Result<f64> {
    let side = if device == Device::Cpu { 1024 } else { 8192 };
    let _no_grad = tch::no_grad_guard();
    let matrix = Tensor::f_rand([side, side], (kind, device))?;
    let seconds = products::seconds_of(device, || matrix.f_mm(&matrix).map(drop))?;
    Ok(2.0 * (side as f64).powi(3) / seconds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
