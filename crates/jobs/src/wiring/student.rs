//! Connects the student's port to the engine.

use std::{sync::Arc, time::Instant};

use ddk_actors::{Live, MicroBatch, PortError, Work, ports::Between};
use ddk_engine::{FlopCounter, Trainable};
use ddk_run::{MicroBatchSums, PhaseSeconds, SnapshotFile, StepPhase, UpdateStats, texts::Text};
use ddk_settings::Settings;
use tch::Tensor;

use super::{
    context::{Context, port_error, sequences},
    teacher::Labeled,
};
use crate::faults::Place;

/// Name and text of a file in every checkpoint beside the student's own: the run's inputs, or the versions that
/// wrote it.
pub type Record = (&'static str, Arc<[u8]>);

/// The student on its worker.
pub struct StudentPort {
    pub(super) context: Context,
    pub(super) student: Box<dyn Trainable>,
    pub(super) flops: FlopCounter,
    pub(super) records: Vec<Record>,
    pub(super) live: Arc<Live>,
}

impl StudentPort {
    /// Applies the current learning rates, which may have changed since the last step.
    fn take_learning_rates(&mut self) {
        let rates = |settings: &Settings| (settings.optimizer.lr, settings.lr_scheduler.min_lr);
        let (peak, end) = self.live.get(rates);
        self.student.set_learning_rates(peak, end);
    }
}

impl ddk_actors::Student for StudentPort {
    type TeacherOutput = Option<Labeled>;
    type Weights = Vec<Tensor>;

    fn accumulate(
        &mut self,
        batch: &MicroBatch,
        labeled: Option<Labeled>,
    ) -> Result<MicroBatchSums, PortError> {
        let rows = sequences(batch);
        let (student, predictions) = (&mut self.student, batch.draw.predictions as f64);
        let teacher = labeled.as_ref().map(|labeled| &labeled.output);
        let accumulate = || {
            let sums = student.accumulate(&rows, teacher, predictions)?;
            if batch.last_of_slot {
                student.end_slot()?;
            }
            Ok(sums)
        };
        let (mut sums, waited) = self.context.work_in_turn(Work::Train, accumulate)?;
        let faults = &self.context.ports.faults;
        // The NaN must come from the engine, because the engine skips the step.
        if faults.worker(Place::Student, batch.step())? {
            sums.ce = self.student.poison();
        }
        sums.seconds.insert(StepPhase::TeacherWait, waited);
        if let Some(labeled) = &labeled {
            let cached = rows.iter().zip(&labeled.cached);
            let cached: Vec<_> = cached
                .filter_map(|(row, cached)| cached.then_some(*row))
                .collect();
            let positions: usize = cached.iter().map(|row| row.tokens.len()).sum();
            let saved = self.flops.teacher(&cached) - self.flops.teacher_head(positions as u64);
            sums.teacher_flops = self.flops.teacher(&rows) - saved;
            sums.teacher_flops_saved = saved;
        }
        sums.student_flops = self.flops.student(&rows);
        Ok(sums)
    }

    fn update(&mut self, step: u64) -> Result<UpdateStats, PortError> {
        self.take_learning_rates();
        let (student, began) = (&mut self.student, Instant::now());
        let update = || Ok(student.update(step)?);
        let (mut stats, waited) = self.context.work_in_turn(Work::Train, update)?;
        let exchange: f64 = stats.seconds.values().sum();
        let optimizer = began.elapsed().as_secs_f64() - waited - exchange;
        stats.seconds.extend([
            (StepPhase::TeacherWait, waited),
            // Includes the GPU's part of it, so that the phases of a step add up to its time.
            (StepPhase::Optimizer, optimizer),
        ]);
        Ok(stats)
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, PortError> {
        self.take_learning_rates();
        let stats = self.student.discard(step, reason);
        let mut stats = stats.map_err(|error| port_error(error, Work::Train))?;
        stats.seconds =
            PhaseSeconds::from([(StepPhase::TeacherWait, 0.0), (StepPhase::Optimizer, 0.0)]);
        Ok(stats)
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        self.context.evaluate(|| Ok(self.student.model()), between)
    }

    fn texts(&mut self, is_over: &dyn Fn() -> bool) -> Result<Option<Vec<Text>>, PortError> {
        self.context.texts(|| Ok(self.student.model()), is_over)
    }

    fn weights(&mut self) -> Result<Vec<Tensor>, PortError> {
        let copy = || Ok(self.student.model().copy_parameters()?);
        self.context.work(Work::Train, copy)
    }

    fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, PortError> {
        let files = self.student.snapshot();
        let mut files = files.map_err(|error| port_error(error, Work::Train))?;
        files.extend(self.records.iter().map(|(name, text)| {
            let text = Arc::clone(text);
            SnapshotFile::new(*name, move |out| out.write_all(&text))
        }));
        Ok(files)
    }

    fn busy_seconds(&self) -> f64 {
        self.context.compute.busy_seconds()
    }
}
