//! One micro-batch of each model, for an estimate within seconds.

use std::time::Duration;

use anyhow::Result;
use ddk_settings::Settings;
use ddk_torch::TimeSlice;

use super::{Bench, alone, matrix_rate};
use crate::wiring;

/// Seconds of a micro-batch, and of the update after the last one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct MicroBatch {
    /// The teacher's forward pass; 0 if its output is not needed here.
    pub(crate) teacher: f64,
    /// The student's forward pass, both LM heads, the losses and the backward pass.
    pub(crate) student: f64,
    /// The student's forward pass alone, without an LM head.
    pub(crate) forward: f64,
    /// The optimizer's update.
    pub(crate) update: f64,
}

/// Floating-point operations of the same parts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Operations {
    pub(crate) teacher: f64,
    pub(crate) student: f64,
    pub(crate) forward: f64,
}

impl Bench {
    /// Prepares a benchmark of one micro-batch of this many sequences and tokens per sequence: a warm-up, then three
    /// repetitions.
    ///
    /// # Errors
    /// As for [`Bench::new`].
    pub(crate) fn of_shape(settings: &Settings, rows: u64, length: usize) -> Result<Self> {
        let mut alone = settings.clone();
        alone.training.global_batch_size = rows;
        alone.training.micro_batch_size = rows;
        alone.corpus.sequence_length = length;
        alone.parallel.slots = 1;
        let mut bench = Self::new(&alone, 0.0)?;
        (bench.time, bench.warm_up, bench.turns) = (Duration::ZERO, 1, 3);
        Ok(bench)
    }

    /// Times the micro-batch on both models, one after the other.
    ///
    /// # Errors
    /// As for [`Bench::seconds`].
    pub(crate) fn micro_batch(&self) -> Result<MicroBatch> {
        let is_here = self.models.asks_teacher() && !self.models.folders.head_only;
        let teacher = is_here.then(|| alone("teacher", || self.teacher(|| Ok(()))));
        let [teacher] = teacher.transpose()?.unwrap_or_default();
        let [forward, heads, backward, update] = alone("student", || self.student(|| Ok(())))?;
        Ok(MicroBatch {
            teacher,
            student: forward + heads + backward,
            forward,
            update,
        })
    }

    /// Counts the operations of the micro-batch.
    ///
    /// # Errors
    /// If a `config.json` cannot be read.
    pub(crate) fn operations(&self) -> Result<Operations> {
        let flops = self.models.flop_counter()?;
        let rows: Vec<_> = self.batch.rows.iter().collect();
        let head = flops.teacher_head(self.lengths().sum());
        let asks = self.models.asks_teacher();
        let model = self.models.folders.configs()?.1;
        Ok(Operations {
            teacher: if asks {
                flops.teacher(&rows) - head
            } else {
                0.0
            },
            student: flops.student(&rows) + if asks { head } else { 0.0 },
            forward: model.flops().hidden(self.lengths()),
        })
    }

    /// Returns the operations per second of the teacher's worker and of the student's in large matrix products.
    ///
    /// # Errors
    /// If a device cannot be used.
    pub(crate) fn rates(&self) -> Result<[f64; 2]> {
        let (settings, turns) = (&self.models.settings, TimeSlice::new(false));
        let of_student = alone("student", || {
            let compute = self.models.student_context(&turns)?;
            let placement = wiring::student_placement(&settings.student)?;
            compute.work(|| matrix_rate(placement.compute, placement.devices[0]))?
        })?;
        if settings.teacher.is_served() {
            return Ok([of_student; 2]);
        }
        let of_teacher = alone("teacher", || {
            let compute = self.models.teacher_context(0, &turns)?;
            let placement = wiring::teacher_placement(&settings.teacher, 0)?;
            compute.work(|| matrix_rate(placement.compute, placement.devices[0]))?
        })?;
        Ok([of_teacher, of_student])
    }
}
