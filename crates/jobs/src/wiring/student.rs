//! The student on its lane.

use std::{path::PathBuf, sync::Arc, time::Instant};

use ddk_actors::{
    Live, MicroBatch, MicroLoss, PortError, RowLoss, Update,
    ports::{Between, StudentFactory},
};
use ddk_engine::{
    Filters, FlopCounter, Learner, RowLosses, RowSums, StudentOptions, TeacherOutput, UpdateReport,
};
use ddk_run::NamedFile;
use ddk_settings::Settings;
use ddk_torch::{Lane, Turns, parse_device};
use tch::Tensor;

use super::{
    Evaluation, ModelFolders, Record, broken_by, build_filters, build_student,
    errors::{device_error, engine_error, model_error, torch_error},
    flop_counter, sequences, work, work_in_turn,
};
use crate::{
    faults::{Faults, Place},
    phase::Phase,
};

/// The student on its lane.
pub struct StudentPort {
    records: Vec<Record>,
    live: Arc<Live>,
    faults: Arc<Faults>,
    lane: Lane,
    student: Box<dyn Learner>,
    evaluation: Evaluation,
    flops: FlopCounter,
    /// Evaluations made so far.
    evaluations: u64,
}

/// How a student begins.
pub struct StudentStart {
    pub options: StudentOptions,
    pub row_losses: RowLosses,
    /// The checkpoint that it goes on from; its folder where absent.
    pub checkpoint: Option<PathBuf>,
    pub turns: Turns,
}

/// Builds the student on its thread.
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
        let device = parse_device(&settings.student.device).map_err(device_error)?;
        let threads = settings.student.threads;
        let lane = Lane::beside_others(threads, &[device], &start.turns).map_err(torch_error)?;
        let flops = flop_counter(&folders, &start.options).map_err(model_error)?;
        let learns_filters = |filters: &Filters| filters.learnt.is_none();
        let build = || -> Result<Box<dyn Learner>, PortError> {
            match start.options.filters.clone() {
                Some(filters) if learns_filters(&filters) => Ok(Box::new(build_filters(
                    &settings, &folders, filters, start,
                )?)),
                _ => {
                    let (options, checkpoint) = (start.options, start.checkpoint);
                    let mut student = build_student(&settings, &folders, options, checkpoint)?;
                    student.set_row_losses(start.row_losses);
                    Ok(Box::new(student))
                }
            }
        };
        let student = work(&lane, build)?;
        Ok(StudentPort {
            records,
            live,
            faults,
            lane,
            student,
            evaluation,
            flops,
            evaluations: 0,
        })
    })
}

impl ddk_actors::Student for StudentPort {
    type Signal = Option<TeacherOutput>;
    type Weights = Vec<Tensor>;

    fn accumulate(
        &mut self,
        batch: &MicroBatch,
        teacher: Option<TeacherOutput>,
    ) -> Result<MicroLoss, PortError> {
        let rows = sequences(batch);
        let waited = self.lane.waited_seconds();
        let (student, predictions) = (&mut self.student, batch.step_predictions as f64);
        let done = work_in_turn(&self.lane, || {
            let done = student.accumulate(&rows, teacher.as_ref(), predictions);
            done.map_err(engine_error)
        })?;
        let waited = self.lane.waited_seconds() - waited;
        // What is not a number has to come out of the engine to be skipped there.
        let ce_sum = if self.faults.worker(Place::Student, batch.step)? {
            self.student.poison()
        } else {
            done.ce_sum
        };
        Ok(MicroLoss {
            ce_sum,
            kl_sum: done.kl_sum,
            layer_sum: done.layer_sum,
            rows: done.rows.iter().map(row_loss).collect(),
            seconds: [
                ("teacher_wait", waited),
                ("forward", done.forward_seconds),
                ("head", done.head_seconds),
                ("backward", done.backward_seconds),
            ],
            teacher_flops: teacher.map_or(0.0, |_| self.flops.teacher(&rows)),
            student_flops: self.flops.student(&rows),
        })
    }

    fn update(&mut self, step: u64) -> Result<Update, PortError> {
        self.student.set_lr_end(self.live.lr_end());
        let waited = self.lane.waited_seconds();
        let (student, began) = (&mut self.student, Instant::now());
        let update = || student.update(step).map_err(engine_error);
        let report = work_in_turn(&self.lane, update)?;
        let waited = self.lane.waited_seconds() - waited;
        // With what a GPU does of it: the parts of a step add up to its time.
        let seconds = began.elapsed().as_secs_f64() - waited;
        Ok(updated(report, waited, seconds))
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<Update, PortError> {
        let report = self.student.discard(step, reason).map_err(engine_error)?;
        Ok(updated(report, 0.0, 0.0))
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        self.evaluations += 1;
        let documents = self.evaluation.documents();
        let told = || between(0, documents);
        let nan = self
            .faults
            .worker_until(Place::Evaluation, self.evaluations, &told)?;
        let measured = work(&self.lane, || {
            let model = self.student.model();
            let measured = self.evaluation.perplexities(model, between);
            measured.map_err(engine_error)
        })?;
        Ok(broken_by(nan, measured))
    }

    fn weights(&mut self) -> Result<Vec<Tensor>, PortError> {
        let copy = || self.student.model().copy_parameters();
        work(&self.lane, || copy().map_err(model_error))
    }

    fn snapshot(&mut self) -> Result<Vec<NamedFile>, PortError> {
        let snapshot = self.student.snapshot().map_err(engine_error)?;
        let records = self.records.clone().into_iter();
        let records = records.map(|(name, text)| NamedFile {
            name: name.to_owned(),
            write: Box::new(move |out| out.write_all(&text)),
        });
        let files = snapshot.into_files().into_iter();
        let files = files.map(|(name, write)| NamedFile {
            name: name.to_owned(),
            write,
        });
        Ok(files.chain(records).collect())
    }

    fn busy_seconds(&self) -> f64 {
        self.lane.busy_seconds()
    }
}

fn row_loss(sums: &RowSums) -> RowLoss {
    RowLoss {
        ce: sums.ce,
        excess: sums.excess,
    }
}

fn updated(report: UpdateReport, waited: f64, seconds: f64) -> Update {
    Update {
        learning_rate: report.learning_rate,
        grad_norm: report.grad_norm,
        skipped: report.skipped,
        seconds: [("teacher_wait", waited), ("optimizer", seconds)],
    }
}
