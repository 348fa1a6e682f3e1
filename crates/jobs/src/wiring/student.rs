//! The student's port: runs the student on its worker.

use std::{sync::Arc, time::Instant};

use ddk_actors::{
    Live, MicroBatch, PortError, Work,
    ports::{Between, StudentFactory},
};
use ddk_engine::{Evaluation, FlopCounter, TeacherOutput, Trainable};
use ddk_run::{MicroBatchSums, PhaseSeconds, SnapshotFile, StepPhase, UpdateStats};
use ddk_settings::Settings;
use ddk_torch::{ComputeContext, parse_device};
use tch::Tensor;

use super::{
    context::{Context, port_error, sequences},
    models::{ModelFolders, Record, StudentStart, build_learner, flop_counter},
};
use crate::{
    faults::{Faults, Place},
    phase::Phase,
};

/// The student on its worker.
pub struct StudentPort {
    context: Context,
    student: Box<dyn Trainable>,
    flops: FlopCounter,
    records: Vec<Record>,
    live: Arc<Live>,
}

/// Returns a factory that builds the student on its thread.
pub fn student(
    settings: &Settings,
    folders: ModelFolders,
    start: StudentStart,
    evaluation: Evaluation,
    records: Vec<Record>,
    live: Arc<Live>,
    faults: Arc<Faults>,
) -> StudentFactory<StudentPort> {
    let settings = settings.clone();
    Box::new(move || {
        faults.phase(Phase::Load)?;
        let build = || -> anyhow::Result<StudentPort> {
            let device = parse_device(&settings.student.device)?;
            let compute =
                ComputeContext::beside_others(settings.student.threads, &[device], &start.turns)?;
            let context = Context::new(compute, &faults, &evaluation);
            let flops = flop_counter(&folders, &start.options)?;
            let student =
                context.work(Work::Train, || build_learner(&settings, &folders, start))?;
            Ok(StudentPort {
                context,
                student,
                flops,
                records,
                live,
            })
        };
        build().map_err(|error| port_error(error, Work::Train))
    })
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
    type TeacherOutput = Option<TeacherOutput>;
    type Weights = Vec<Tensor>;

    fn accumulate(
        &mut self,
        batch: &MicroBatch,
        teacher: Option<TeacherOutput>,
    ) -> Result<MicroBatchSums, PortError> {
        let rows = sequences(batch);
        let (student, predictions) = (&mut self.student, batch.step_predictions as f64);
        let accumulate = || Ok(student.accumulate(&rows, teacher.as_ref(), predictions)?);
        let (mut sums, waited) = self.context.work_in_turn(Work::Train, accumulate)?;
        // The NaN must come from the engine, because the engine skips the step.
        if self.context.faults.worker(Place::Student, batch.step)? {
            sums.ce = self.student.poison();
        }
        sums.seconds.insert(StepPhase::TeacherWait, waited);
        if teacher.is_some() {
            sums.teacher_flops = self.flops.teacher(&rows);
        }
        sums.student_flops = self.flops.student(&rows);
        Ok(sums)
    }

    fn update(&mut self, step: u64) -> Result<UpdateStats, PortError> {
        self.take_learning_rates();
        let (student, began) = (&mut self.student, Instant::now());
        let update = || Ok(student.update(step)?);
        let (mut stats, waited) = self.context.work_in_turn(Work::Train, update)?;
        stats.seconds = PhaseSeconds::from([
            (StepPhase::TeacherWait, waited),
            // Includes the GPU's part of it, so that the phases of a step add up to its time.
            (StepPhase::Optimizer, began.elapsed().as_secs_f64() - waited),
        ]);
        Ok(stats)
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, PortError> {
        self.take_learning_rates();
        let mut stats = self
            .student
            .discard(step, reason)
            .map_err(|error| port_error(error.into(), Work::Train))?;
        stats.seconds =
            PhaseSeconds::from([(StepPhase::TeacherWait, 0.0), (StepPhase::Optimizer, 0.0)]);
        Ok(stats)
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        self.context.evaluate(|| Ok(self.student.model()), between)
    }

    fn weights(&mut self) -> Result<Vec<Tensor>, PortError> {
        self.context.work(Work::Train, || {
            Ok(self.student.model().copy_parameters()?)
        })
    }

    fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, PortError> {
        let mut files = self
            .student
            .snapshot()
            .map_err(|error| port_error(error.into(), Work::Train))?
            .into_files();
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
