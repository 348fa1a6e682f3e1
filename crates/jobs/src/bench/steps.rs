//! The steps of both models that the benchmark times.

use std::{borrow::Borrow, time::Instant};

use anyhow::{Result, anyhow};
use ddk_corpus::Sequence;
use ddk_engine::{Student, StudentOptions, Teacher, TeacherOutput, Trainable};
use ddk_run::StepPhase;
use ddk_settings::Settings;
use ddk_torch::{ComputeContext, TimeSlice, parse_device};

use crate::wiring::{self, ModelFolders};

/// Warm-up steps before the clock starts, in which libtorch chooses algorithms and allocates memory.
pub(super) const WARM_UP: usize = 2;

/// The parts of a student's step.
pub(super) const PARTS: [&str; 4] = ["forward", "heads and losses", "backward", "optimizer"];

/// Both models of a configuration.
pub(crate) struct Models<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) folders: ModelFolders,
    pub(crate) options: StudentOptions,
}

impl Models<'_> {
    /// Whether batches need the teacher's output.
    pub(super) fn asks_teacher(&self) -> bool {
        wiring::needs_teacher_output(self.settings)
    }

    /// Builds the teacher of a worker.
    pub(super) fn teacher(&self, replica: usize) -> Result<Teacher> {
        let student = parse_device(&self.settings.student.device)?;
        let placement = wiring::teacher_placement(&self.settings.teacher, replica)?;
        let model = self.folders.frozen.model(&placement)?;
        let filters = self.options.filters.as_ref();
        Ok(wiring::build_teacher(
            model,
            student,
            filters,
            self.settings.teacher.batch_size,
        )?)
    }

    /// Builds the first worker's teacher, if its output is needed.
    pub(super) fn asked_teacher(&self) -> Result<Option<Teacher>> {
        let teacher = self.asks_teacher().then(|| self.teacher(0));
        teacher.transpose()
    }

    pub(super) fn student(&self) -> Result<Student> {
        wiring::build_student(self.settings, &self.folders, self.options.clone(), None)
    }

    pub(super) fn teacher_context(
        &self,
        number: usize,
        turns: &TimeSlice,
    ) -> Result<ComputeContext> {
        let teacher = &self.settings.teacher;
        let mut devices = wiring::teacher_placement(teacher, number)?.devices;
        devices.push(parse_device(&self.settings.student.device)?);
        Ok(ComputeContext::beside_others(
            teacher.threads,
            &devices,
            turns,
        )?)
    }

    pub(super) fn student_context(&self, turns: &TimeSlice) -> Result<ComputeContext> {
        let student = &self.settings.student;
        let device = parse_device(&student.device)?;
        Ok(ComputeContext::beside_others(
            student.threads,
            &[device],
            turns,
        )?)
    }
}

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
