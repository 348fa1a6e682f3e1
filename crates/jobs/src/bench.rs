//! `ddk bench`: how fast this machine distills these models, where the time goes, and what to change.
//!
//! Both models run on sequences of random tokens with the configuration's shape. The benchmark reads no corpus and
//! writes no files.

mod products;
pub(crate) mod quick;
mod report;
mod steps;

use std::{
    array,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use ddk_corpus::Sequence;
use ddk_engine::FlopCounter;
use ddk_model::{ModelConfig, Placement};
use ddk_settings::Settings;
use ddk_telemetry::Meter;
use ddk_torch::{TimeSlice, mkl_kernels};
use tch::{Device, Kind, Tensor};

pub(crate) use self::steps::serial;
use self::{
    products::Products,
    report::{Measured, Part},
    steps::{Batch, PARTS, WARM_UP, alone, overlapped, student_step},
};
use crate::{
    args, config,
    hint::{Hint, usage},
    hub::{self, Wanted},
    output::print_json,
    phase::Phase,
    progress::say,
    signals::Signals,
    train::options,
    wiring,
};

/// How often steps and their matmuls alone alternate.
const TURNS: u32 = 5;

/// Seed of the random tokens. They do not affect speed, as long as they cover all kinds of LM head columns.
const SEED: u64 = 0;

/// A guess of the operations per second of one CPU thread. It counts until something is measured.
pub(crate) const OF_A_THREAD: f64 = 2.5e10;

/// Maximum seconds of a measurement: one day.
const MOST_SECONDS: f64 = 86_400.0;

/// Both models of a configuration, and the batch that they run on.
pub struct Bench {
    models: wiring::Models,
    batch: Batch,
    /// Duration of each measurement.
    time: Duration,
    /// Steps before the clock starts.
    warm_up: usize,
    /// How often steps and their matmuls alone alternate, so that a temporary slowdown of the machine affects both.
    turns: u32,
    /// Number of steps timed so far.
    steps: Arc<AtomicU64>,
}

/// Measures teacher, student and both together, and prints where the time goes.
///
/// # Errors
/// If the settings are wrong, or if a model cannot be loaded or run.
pub fn run(args: &args::Bench, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let settings = config::begin(&args.config, signals)?;
    teacher_is_here(&settings, "ddk bench")?;
    let seconds = args.seconds;
    ensure!(
        (0.0..=MOST_SECONDS).contains(&seconds),
        usage(anyhow!(
            "--seconds is {seconds}, expected 0 to {MOST_SECONDS}"
        ))
    );
    let pinned = hub::pinned(&settings)?;
    let settings = hub::located(&settings, &[Wanted::Models], &pinned, Some(signals))?;
    signals.begin(Phase::Bench)?;
    let measured = Bench::new(&settings, seconds)?.measure()?;
    if args.json {
        print_json(&measured, out)
    } else {
        measured.write(out)
    }
}

/// Fails if servers compute the teacher, because `command` times it on this machine.
///
/// # Errors
/// If `teacher.servers` is set.
pub(crate) fn teacher_is_here(settings: &Settings, command: &str) -> Result<()> {
    if !settings.teacher.is_served() {
        return Ok(());
    }
    let servers = settings.teacher.servers.join(", ");
    Err(anyhow!(
        "{command} times both models on this machine, but the teacher runs on {servers}"
    ))
    .hint("time a teacher on this machine: --set 'teacher.servers=[]'")
    .usage()
}

impl Bench {
    /// Prepares a benchmark. Each measurement takes about `seconds`, plus the time to load a model.
    ///
    /// # Errors
    /// If `teacher.model` or `student.model` is not set, if a `config.json` cannot be read, or if `student.device`
    /// cannot be used.
    pub fn new(settings: &Settings, seconds: f64) -> Result<Self> {
        let folders = wiring::ModelFolders::of(settings)?;
        let (teacher, student) = folders.configs()?;
        let vocabulary = teacher.vocab_size().min(student.vocab_size());
        let mut rng = ddk_order::stream(SEED, "bench", &[]);
        let row = |_| -> Sequence {
            let tokens = 0..settings.corpus.sequence_length;
            let token = |_| ddk_order::below(&mut rng, vocabulary.unsigned_abs()) as u32;
            tokens.map(token).collect::<Vec<u32>>().into()
        };
        Ok(Self {
            batch: Batch {
                rows: (0..settings.training.global_batch_size).map(row).collect(),
                micro_rows: settings.training.micro_batch_size as usize,
            },
            models: wiring::Models {
                options: options::of_student(settings, vocabulary, None)?,
                settings: settings.clone(),
                folders,
            },
            time: Duration::from_secs_f64(seconds),
            warm_up: WARM_UP,
            turns: TURNS,
            steps: Arc::default(),
        })
    }

    /// Returns the seconds per step of the teacher (0 if its output is not needed) and of the student.
    ///
    /// # Errors
    /// If a model cannot be loaded, or if a step fails or panics.
    pub fn seconds(&self) -> Result<(f64, f64)> {
        let asked = self.models.asks_teacher();
        let (made, sides) = (Arc::clone(&self.steps), 1 + u64::from(asked));
        // At least; a short step is repeated more often.
        let total = sides * (WARM_UP as u64 + u64::from(TURNS));
        let meter = Meter::reading(Phase::Threads.describe().0, "steps", move || {
            (made.load(Ordering::Relaxed).min(total), total)
        });
        let _meter = meter.expecting(self.guess(total / sides));
        let teacher = asked.then(|| alone("teacher", || self.teacher(|| Ok(()))));
        let [teacher] = teacher.transpose()?.unwrap_or_default();
        let student = alone("student", || self.student(|| Ok(())))?;
        Ok((teacher, student.iter().sum()))
    }

    /// Returns a counter of the FLOPs of both models.
    ///
    /// # Errors
    /// If a `config.json` cannot be read.
    pub(crate) fn flop_counter(&self) -> Result<FlopCounter> {
        Ok(self.models.flop_counter()?)
    }

    /// Returns the seconds that this many steps of both models may take on one thread, if their FLOPs are known.
    fn guess(&self, steps: u64) -> Option<f64> {
        let flops = self.models.flop_counter().ok()?;
        let rows: Vec<&Sequence> = self.batch.rows.iter().collect();
        let of_a_step = flops.teacher(&rows) + flops.student(&rows);
        Some(steps as f64 * of_a_step / OF_A_THREAD)
    }

    fn measure(&self) -> Result<Measured> {
        let (settings, options) = (&self.models.settings, &self.models.options);
        say("measuring the teacher alone");
        let asked = self.models.asks_teacher();
        let teacher = asked.then(|| alone("teacher", || self.measure_teacher()));
        let (teacher_rate, teacher) = teacher.transpose()?.unzip();
        say("measuring the student alone");
        let (student_rate, student) = alone("student", || self.measure_student())?;
        say("measuring both, overlapped");
        let (overlapped_seconds, student_waits) = overlapped(&self.models, &self.batch, self.time)?;
        let teacher = teacher.map(|[teacher]| teacher);
        let teacher_seconds = teacher.as_ref().map(|part| part.seconds);
        let replicas = settings.teacher.replicas();
        Ok(Measured {
            rows: settings.training.global_batch_size,
            sequence_length: settings.corpus.sequence_length,
            vocabulary: options.vocabulary,
            kernels: mkl_kernels(),
            advice: report::advice(replicas, teacher_seconds, &student),
            teacher_rate,
            student_rate,
            teacher,
            student,
            overlapped_seconds,
            student_waits,
            tokens_per_second: self.batch.tokens() / overlapped_seconds,
        })
    }

    /// Returns the matmuls in a model's part of a step.
    fn products<'b>(&self, model: &'b ModelConfig, kind: Kind, device: Device) -> Products<'b> {
        let length = self.models.settings.corpus.sequence_length as i64;
        let positions = self.batch.micro_rows as i64 * length;
        Products {
            model,
            length,
            positions,
            micro_batches: self.batch.micro_batches().count() as f64,
            chunk: self.models.options.chunk.min(positions),
            columns: self.models.options.vocabulary,
            kind,
            device,
        }
    }

    fn lengths(&self) -> impl Iterator<Item = u64> {
        self.batch.rows.iter().map(|row| row.tokens.len() as u64)
    }

    /// Measures the teacher's steps, and the matmuls of its layers.
    fn measure_teacher(&self) -> Result<(f64, [Part; 1])> {
        let placement = wiring::teacher_placement(&self.models.settings.teacher, 0)?;
        let model = self.models.folders.teacher_config()?;
        let products = self.products(&model, placement.compute, placement.devices[0]);
        let operations = [model.flops().hidden(self.lengths())];
        let alone = || Ok([products.forward()?]);
        side(["teacher"], &placement, operations, alone, |between| {
            self.teacher(between)
        })
    }

    /// Measures the student's steps, and the matmuls on its worker, which also applies the teacher's LM head.
    fn measure_student(&self) -> Result<(f64, [Part; 4])> {
        let (settings, options) = (&self.models.settings, &self.models.options);
        let placement = wiring::student_placement(&settings.student)?;
        let device = placement.devices[0];
        let (teacher, model) = self.models.folders.configs()?;
        let products = self.products(&model, placement.compute, device);
        let kind = wiring::kind(settings.teacher.dtype);
        let asked = self.models.asks_teacher();
        let of_teacher = asked.then(|| self.products(&teacher, kind, device));
        // Forward passes that the backward pass repeats.
        let recomputed = f64::from(u8::from(options.recompute));
        let (positions, columns) = (self.lengths().sum(), options.vocabulary.unsigned_abs());
        let forward = model.flops().hidden(self.lengths());
        let head = |products: &Products| products.model.flops().head(positions, columns);
        let operations = [
            forward,
            // The teacher's LM head runs beside the student's.
            of_teacher.as_ref().map_or(0.0, head) + 3.0 * head(&products),
            (2.0 + recomputed) * forward,
            0.0,
        ];
        let alone = || {
            let forward = products.forward()?;
            let of_teacher = of_teacher.as_ref().map(Products::logits);
            let of_teacher = of_teacher.transpose()?.unwrap_or(0.0);
            Ok([
                forward,
                of_teacher + products.logits()? + products.logits_backward()?,
                products.backward()? + recomputed * forward,
                0.0,
            ])
        };
        side(PARTS, &placement, operations, alone, |between| {
            self.student(between)
        })
    }

    /// Times a step's forward passes. Calls `between` from time to time.
    fn teacher(&self, between: impl FnMut() -> Result<()>) -> Result<[f64; 1]> {
        let compute = self.models.teacher_context(0, &TimeSlice::new(false))?;
        let teacher = self.models.teacher(0)?;
        self.timed(between, |_| {
            let began = Instant::now();
            for micro in self.batch.micro_batches() {
                compute.work(|| teacher.label(&micro))??;
            }
            Ok([began.elapsed().as_secs_f64()])
        })
    }

    /// Like [`Self::teacher`], for the student's step.
    fn student(&self, between: impl FnMut() -> Result<()>) -> Result<[f64; 4]> {
        let teacher = self.models.asked_teacher()?;
        let compute = self.models.student_context(&TimeSlice::new(false))?;
        let mut student = self.models.student(None)?;
        let label = |micro: Vec<&Sequence>| {
            let signal = teacher.as_ref().map(|teacher| teacher.label(&micro));
            signal.transpose()
        };
        let signals = self.batch.micro_batches().map(label);
        let signals = signals.collect::<Result<Vec<_>, _>>()?;
        drop(teacher);
        self.timed(between, |number| {
            let signal = |index: usize, _: &[&Sequence]| Ok(signals[index].as_ref());
            student_step((&compute, &mut student), number, &self.batch, signal)
        })
    }

    /// Returns the medians of steps, which alternate with `between`.
    fn timed<const N: usize>(
        &self,
        mut between: impl FnMut() -> Result<()>,
        mut step: impl FnMut(u64) -> Result<[f64; N]>,
    ) -> Result<[f64; N]> {
        let mut numbers = 1..;
        let mut step = || step(numbers.next().unwrap_or_default());
        for _ in 0..self.warm_up {
            step()?;
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
        let mut steps = Vec::new();
        for _ in 0..self.turns {
            between()?;
            let began = Instant::now();
            steps.push(step()?);
            self.steps.fetch_add(1, Ordering::Relaxed);
            while began.elapsed() < self.time / self.turns {
                steps.push(step()?);
            }
        }
        Ok(medians(&steps))
    }
}

/// Measures one model. `steps` calls its argument between steps; `alone` times the matmuls. Returns the operations
/// per second in large square matmuls, and the parts of a step.
fn side<const N: usize>(
    names: [&'static str; N],
    placement: &Placement,
    operations: [f64; N],
    alone: impl Fn() -> Result<[f64; N]>,
    steps: impl FnOnce(&mut dyn FnMut() -> Result<()>) -> Result<[f64; N]>,
) -> Result<(f64, [Part; N])> {
    let (mut rates, mut products) = (Vec::new(), Vec::new());
    let seconds = steps(&mut || {
        rates.push(matrix_rate(placement.compute, placement.devices[0])?);
        products.push(alone()?);
        Ok(())
    })?;
    let products = medians(&products);
    let part = |number: usize| Part {
        name: names[number],
        seconds: seconds[number],
        operations: operations[number],
        products: products[number],
    };
    Ok((median(rates), array::from_fn(part)))
}

/// Returns the median of each part.
fn medians<const N: usize>(all: &[[f64; N]]) -> [f64; N] {
    array::from_fn(|part| median(all.iter().map(|seconds| seconds[part]).collect()))
}

/// Returns the operations per second in large square matmuls, on the threads of the calling worker.
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
