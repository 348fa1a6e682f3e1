//! The steps of both models that the benchmark times: one after the other, or with both models running concurrently.

use std::{
    borrow::Borrow,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use crossbeam::channel::bounded;
use ddk_corpus::{Cursor, PreparedDomain, Sequence, SequenceReader};
use ddk_engine::{Student, TeacherOutput, Trainable};
use ddk_mixture::{Quota, interval_order};
use ddk_run::{StepPhase, records::Serial};
use ddk_telemetry::Meter;
use ddk_torch::{ComputeContext, TimeSlice};

use crate::wiring::Models;

/// Warm-up steps before the clock starts, in which libtorch chooses algorithms and allocates memory.
pub(super) const WARM_UP: usize = 2;

/// The parts of a student's step.
pub(super) const PARTS: [&str; 4] = ["forward", "heads and losses", "backward", "optimizer"];

/// The sequences of a step, split into micro-batches.
pub(super) struct Batch {
    pub(super) rows: Vec<Sequence>,
    pub(super) micro_rows: usize,
}

impl Batch {
    pub(super) fn micro_batches(&self) -> impl Iterator<Item = Vec<&Sequence>> {
        let chunks = self.rows.chunks(self.micro_rows);
        chunks.map(|rows| rows.iter().collect())
    }

    pub(super) fn tokens(&self) -> f64 {
        self.rows.iter().map(|row| row.tokens.len()).sum::<usize>() as f64
    }
}

/// Runs a student's step with the teacher output from `signal` for each micro-batch. `number` starts at 1. Returns
/// the seconds of the step's parts.
pub(super) fn student_step<Output: Borrow<TeacherOutput>>(
    (compute, student): (&ComputeContext, &mut Student),
    number: u64,
    batch: &Batch,
    mut signal: impl FnMut(usize, &[&Sequence]) -> Result<Option<Output>>,
) -> Result<[f64; 4]> {
    let predictions = batch.rows.iter().map(Sequence::num_targets).sum::<u64>() as f64;
    let mut seconds = [0.0; 4];
    for (index, micro) in batch.micro_batches().enumerate() {
        let signal = signal(index, &micro)?;
        let signal = signal.as_ref().map(Borrow::borrow);
        let done = compute.work_in_turn(|| student.accumulate(&micro, signal, predictions))??;
        let phases = [StepPhase::Forward, StepPhase::Head, StepPhase::Backward];
        for (seconds, phase) in seconds.iter_mut().zip(phases) {
            *seconds += done.seconds[&phase];
        }
    }
    let began = Instant::now();
    compute.work_in_turn(|| student.update(number))??;
    seconds[3] = began.elapsed().as_secs_f64();
    Ok(seconds)
}

/// Runs work on a new thread with this name, like a worker's.
pub(super) fn alone<T: Send>(name: &str, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned());
        let done = thread.spawn_scoped(scope, work)?.join();
        done.map_err(|_| anyhow!("{name}: the measurement panicked"))?
    })
}

/// Returns the seconds per step while teachers and student run concurrently, and the share of that time in
/// which the student waits. Measures for at least `time`.
pub(super) fn overlapped(models: &Models, batch: &Batch, time: Duration) -> Result<(f64, f64)> {
    let settings = &models.settings;
    let asks_teacher = models.asks_teacher();
    let replicas = settings.teacher.replicas();
    let depth = settings.pipeline.queue_depth;
    let turns = TimeSlice::new(settings.pipeline.time_slicing);
    let queues: Vec<_> = (0..replicas).map(|_| bounded(depth)).collect();
    std::thread::scope(|scope| {
        let (senders, receivers): (Vec<_>, Vec<_>) = queues.into_iter().unzip();
        let mut teachers = Vec::new();
        for (replica, sender) in senders.into_iter().enumerate().filter(|_| asks_teacher) {
            let thread = std::thread::Builder::new().name(format!("teacher-{replica}"));
            let turns = turns.clone();
            teachers.push(thread.spawn_scoped(scope, move || -> Result<()> {
                let on = models.teacher_context(replica, &turns)?;
                let teacher = models.teacher(replica)?;
                // Worker `i mod workers` labels micro-batch i, step after step.
                let all: Vec<_> = batch.micro_batches().collect();
                let mut number = replica;
                // The student closes its end when it has seen enough.
                let label = |number: usize| teacher.label(&all[number % all.len()]);
                while sender.send(on.work_in_turn(|| label(number))??).is_ok() {
                    number += replicas;
                }
                Ok(())
            })?);
        }
        let work = move || -> Result<(f64, f64)> {
            let replica = models.student_context(&turns)?;
            let mut student = models.student(None)?;
            let (mut times, mut waits, mut number) = (Vec::new(), Vec::new(), 0);
            // The queues filled up before the student took from them: that many batches come for free.
            let free = WARM_UP + (depth * replicas).div_ceil(batch.micro_batches().count());
            let counted = |times: &[f64]| times[free..].iter().sum::<f64>();
            while times.len() < free + 3 || counted(&times) < time.as_secs_f64() {
                let began = Instant::now();
                let (mut waited, turns_before) = (0.0, replica.waited_seconds());
                let receive = |_, _: &[&Sequence]| {
                    let asked = Instant::now();
                    let receiver = &receivers[number % replicas];
                    let output = asks_teacher.then(|| receiver.recv()).transpose()?;
                    waited += asked.elapsed().as_secs_f64();
                    number += 1;
                    Ok(output)
                };
                let step = times.len() as u64 + 1;
                student_step((&replica, &mut student), step, batch, receive)?;
                times.push(began.elapsed().as_secs_f64());
                waits.push(waited + replica.waited_seconds() - turns_before);
            }
            let all = counted(&times);
            Ok((all / (times.len() - free) as f64, counted(&waits) / all))
        };
        let done = alone("student", work);
        // A failed teacher makes the student fail too, so report the teacher's error first.
        for (replica, teacher) in teachers.into_iter().enumerate() {
            let ended = teacher.join();
            ended
                .map_err(|_| anyhow!("teacher replica {replica} panicked"))?
                .with_context(|| format!("teacher replica {replica}"))?;
        }
        done
    })
}

/// The serial baseline for the overlapped run: first the teacher, then the student, on all threads.
///
/// Times `steps` steps on throwaway copies of both models, with as many threads as all workers have together. Draws
/// sequences from the domains in these shares.
pub(crate) fn serial(
    models: &Models,
    domains: &[Arc<PreparedDomain>],
    shares: &[f64],
    steps: u64,
) -> Result<Serial> {
    let settings = &models.settings;
    let threads = settings.teacher.threads * settings.teacher.replicas() + settings.student.threads;
    let work = || -> Result<f64> {
        let compute = ComputeContext::enter(threads);
        let teacher = models.asked_teacher()?;
        let mut student = models.student(None)?;
        let (seed, rows) = (settings.run.seed, settings.training.global_batch_size);
        let all_rows = rows * (WARM_UP as u64 + steps);
        let counts = Quota::new(domains.len()).draw(shares, all_rows);
        let reader = |(number, domain): (u16, &Arc<PreparedDomain>)| {
            SequenceReader::new(Arc::clone(domain), number, seed, Cursor::default())
        };
        let mut readers: Vec<SequenceReader> = (0..).zip(domains).map(reader).collect();
        let order = interval_order(&counts, seed, 0);
        let (mut began, mut tokens) = (Instant::now(), 0.0);
        let meter = Meter::start("measuring the serial baseline", "steps");
        for (number, domains) in (1..).zip(order.chunks(rows as usize)) {
            meter.at(number - 1, WARM_UP as u64 + steps);
            if number == WARM_UP as u64 + 1 {
                (began, tokens) = (Instant::now(), 0.0);
            }
            let row = |&domain: &u16| Ok(readers[usize::from(domain)].read()?.sequence);
            let rows = domains.iter().map(row).collect::<Result<_>>()?;
            let micro_rows = settings.training.micro_batch_size as usize;
            let batch = Batch { rows, micro_rows };
            let label = |_, micro: &[&Sequence]| {
                let signal = teacher.as_ref().map(|teacher| teacher.label(micro));
                Ok(signal.transpose()?)
            };
            student_step((&compute, &mut student), number, &batch, label)?;
            tokens += batch.tokens();
        }
        Ok(tokens / began.elapsed().as_secs_f64())
    };
    Ok(Serial {
        threads: threads as u64,
        steps,
        tokens_per_second: alone("serial", work)?,
    })
}
