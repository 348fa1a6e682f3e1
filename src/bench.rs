//! `ddk bench`: how fast this machine distils these models, where the time goes, and what to change.
//!
//! Both models work on rows of random tokens of the configuration's shape; nothing is read from a corpus and nothing is written.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use crossbeam::channel::bounded;
use ddk_engine::{Sequence, Student, StudentOptions, Teacher};
use ddk_model::ModelConfig;
use ddk_settings::Settings;
use ddk_torch::{Lane, Turns, mkl_kernels, parse_device};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

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

/// A side that is slower than the other by more than this is worth a change.
const IMBALANCE: f64 = 1.15;

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

/// A part of a step.
#[derive(Debug, Serialize)]
struct Part {
    name: &'static str,
    /// Of a step.
    seconds: f64,
    /// Floating-point operations of its matrix products.
    operations: f64,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    rows: u64,
    sequence_length: usize,
    vocabulary: i64,
    /// MKL's.
    kernels: &'static str,
    /// Operations a second in large products on the CPU, on the teacher's threads and on the student's.
    teacher_rate: f64,
    student_rate: f64,
    /// Absent where the teacher is not asked.
    teacher: Option<Part>,
    student: Vec<Part>,
    /// Of a step while both compute side by side.
    overlapped_seconds: f64,
    /// The share of them in which the student waits.
    student_waits: f64,
    tokens_per_second: f64,
    advice: String,
}

impl Measured {
    fn write(&self, out: &mut dyn Write) -> Result<()> {
        writeln!(
            out,
            "a step: {} rows of {} tokens, {} ids; the CPU's matrix kernels: {}",
            self.rows, self.sequence_length, self.vocabulary, self.kernels
        )?;
        writeln!(
            out,
            "{:20} {:>9} {:>9} {:>9}",
            "", "seconds", "GFLOP/s", "of rate"
        )?;
        let mut line = |name: &str, seconds: f64, operations: f64, rate: f64| {
            if operations == 0.0 {
                return writeln!(out, "{name:20} {seconds:>9.4}");
            }
            let speed = operations / seconds;
            let (giga, share) = (speed / 1e9, 100.0 * speed / rate);
            writeln!(out, "{name:20} {seconds:>9.4} {giga:>9.0} {share:>7.0} %")
        };
        if let Some(part) = &self.teacher {
            line(part.name, part.seconds, part.operations, self.teacher_rate)?;
        }
        let sum = |of: fn(&Part) -> f64| self.student.iter().map(of).sum::<f64>();
        let student = sum(|part| part.seconds);
        line(
            "student",
            student,
            sum(|part| part.operations),
            self.student_rate,
        )?;
        for part in &self.student {
            let name = format!("  {}", part.name);
            line(&name, part.seconds, part.operations, self.student_rate)?;
        }
        writeln!(
            out,
            "rate: large matrix products on the CPU, {:.0} GFLOP/s on the teacher's threads, {:.0} on the student's",
            self.teacher_rate / 1e9,
            self.student_rate / 1e9
        )?;
        let apart = student + self.teacher.as_ref().map_or(0.0, |part| part.seconds);
        writeln!(
            out,
            "one after the other {:.0} tokens/s; overlapped {:.0} tokens/s ({:.2} x), the student waits {:.0} % of the time",
            self.tokens_per_second * self.overlapped_seconds / apart,
            self.tokens_per_second,
            apart / self.overlapped_seconds,
            100.0 * self.student_waits
        )?;
        Ok(writeln!(out, "{}", self.advice)?)
    }
}

impl Bench<'_> {
    fn measure(&self) -> Result<Measured> {
        let settings = self.settings;
        let labels = wiring::labels(settings);
        say("matrix products");
        let rate = |lane, threads| alone(lane, || matrix_rate(threads));
        let teacher_rate = rate("teacher", settings.teacher.threads)?;
        let student_rate = rate("student", settings.student.threads)?;
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
        let again = if self.options.recompute { 1.0 } else { 0.0 };
        let part = |name, seconds, operations| Part {
            name,
            seconds,
            operations,
        };
        Ok(Measured {
            rows: settings.batch.rows,
            sequence_length: settings.corpus.sequence_length,
            vocabulary: self.options.vocabulary,
            kernels: mkl_kernels(),
            teacher_rate,
            student_rate,
            teacher: labels.then(|| part("teacher", teacher, of_teacher.hidden(lengths()))),
            student: vec![
                part("forward", student.forward, forward),
                part(
                    "heads and losses",
                    student.head,
                    head + 3.0 * of_student.head(positions, columns),
                ),
                part("backward", student.backward, (2.0 + again) * forward),
                part("optimizer", student.optimizer, 0.0),
            ],
            overlapped_seconds,
            student_waits,
            tokens_per_second: self.rows.tokens() / overlapped_seconds,
            advice: self.advice(teacher, student),
        })
    }

    /// In one sentence.
    fn advice(&self, teacher: f64, student: StudentSeconds) -> String {
        let lanes = self.settings.teacher.lanes as f64;
        let ratio = teacher / lanes / student.sum();
        let parts = [
            (student.forward, "forward"),
            (
                student.head,
                "heads: a smaller vocabulary, or fewer tokens that are scored",
            ),
            (student.backward, "backward"),
        ];
        let largest = parts
            .into_iter()
            .max_by(|one, other| one.0.total_cmp(&other.0));
        let part = largest.map_or("", |(_, name)| name);
        if teacher == 0.0 {
            return format!("the student works alone; most of its time goes into its {part}");
        }
        match ratio {
            ratio if ratio > IMBALANCE => format!(
                "the teacher is slower by {ratio:.1} x: give it a lane more (teacher.lanes = {}), another device, or more threads",
                self.settings.teacher.lanes + 1
            ),
            ratio if ratio < 1.0 / IMBALANCE => format!(
                "the student is slower by {:.1} x: give it more threads (student.threads), or the faster device; most of its time goes into its {part}",
                1.0 / ratio
            ),
            _ => "teacher and student are balanced".to_owned(),
        }
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
        let _lane = Lane::enter(self.settings.teacher.threads);
        let teacher = self.build_teacher()?;
        let mut times = Vec::new();
        while !self.is_enough(&times) {
            let began = Instant::now();
            for micro in self.rows.micro_batches() {
                teacher.label(&micro)?;
            }
            wait_for(teacher.model().device());
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
        let _lane = Lane::enter(self.settings.student.threads);
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
                let done = student.accumulate(&micro, signal.as_ref(), self.rows.predictions())?;
                seconds.forward += done.forward_seconds;
                seconds.head += done.head_seconds;
                seconds.backward += done.backward_seconds;
            }
            let update = Instant::now();
            student.update(times.len() as u64 + 1)?;
            wait_for(student.model().device());
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

    /// Seconds of a step while teachers and student work side by side, and the share of them in which the student waits.
    fn overlapped(&self, labels: bool) -> Result<(f64, f64)> {
        let settings = self.settings;
        let lanes = settings.teacher.lanes;
        let depth = settings.queues.depth;
        let turns = match settings.run.take_turns {
            true => Turns::taken(),
            false => Turns::free(),
        };
        let queues: Vec<_> = (0..lanes).map(|_| bounded(depth)).collect();
        std::thread::scope(|scope| {
            let (senders, receivers): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
            for (lane, sender) in senders.into_iter().enumerate().filter(|_| labels) {
                let thread = std::thread::Builder::new().name(format!("teacher-{lane}"));
                let turns = turns.clone();
                thread.spawn_scoped(scope, move || -> Result<()> {
                    let _lane = Lane::enter(settings.teacher.threads);
                    let teacher = self.build_teacher()?;
                    // Micro-batch i is lane i mod lanes', step after step.
                    let all: Vec<_> = self.rows.micro_batches().collect();
                    let mut number = lane;
                    // The student hangs up when it has seen enough.
                    let label = |number: usize| {
                        let _turn = turns.wait();
                        teacher.label(&all[number % all.len()])
                    };
                    while sender.send(label(number)?).is_ok() {
                        number += lanes;
                    }
                    Ok(())
                })?;
            }
            let thread = std::thread::Builder::new().name("student".to_owned());
            let work = move || -> Result<(f64, f64)> {
                let _lane = Lane::enter(settings.student.threads);
                let mut student = self.build_student()?;
                let (mut times, mut waits, mut number) = (Vec::new(), Vec::new(), 0);
                // The queues were filled while nobody took from them: that many batches come for nothing.
                let free = WARM_UP + (depth * lanes).div_ceil(self.rows.micro_batches().count());
                while times.len() < free + 3 || times[free..].iter().sum::<Duration>() < self.time {
                    let began = Instant::now();
                    let mut waited = Duration::ZERO;
                    for micro in self.rows.micro_batches() {
                        let asked = Instant::now();
                        let signal = match labels {
                            true => Some(receivers[number % lanes].recv()?),
                            false => None,
                        };
                        let _turn = turns.wait();
                        waited += asked.elapsed();
                        number += 1;
                        student.accumulate(&micro, signal.as_ref(), self.rows.predictions())?;
                    }
                    student.update(times.len() as u64 + 1)?;
                    times.push(began.elapsed());
                    waits.push(waited);
                }
                let mean = |all: &[Duration]| {
                    all[free..].iter().sum::<Duration>().as_secs_f64() / (all.len() - free) as f64
                };
                let step = mean(&times);
                Ok((step, mean(&waits) / step))
            };
            let done = thread.spawn_scoped(scope, work)?.join();
            done.map_err(|_| anyhow!("the student's lane panicked"))?
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

/// Waits until a GPU has done what it was given.
fn wait_for(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// Operations a second in products of square matrices, on the CPU.
fn matrix_rate(threads: usize) -> Result<f64> {
    const SIDE: i64 = 1024;
    let _lane = Lane::enter(threads);
    let _no_grad = tch::no_grad_guard();
    let matrix = Tensor::f_rand([SIDE, SIDE], (Kind::Float, Device::Cpu))?;
    let mut best = f64::INFINITY;
    for _ in 0..20 {
        let began = Instant::now();
        let _product = matrix.f_mm(&matrix)?;
        best = best.min(began.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIDE as f64).powi(3) / best)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times
        .get(times.len() / 2)
        .map_or(0.0, Duration::as_secs_f64)
}
