//! Connects the ports of `ddk-actors` to the engine and the corpus.

mod models;

use std::{path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context as _, Error, Result};
use ddk_actors::{
    Live, MicroBatch, PortError, Rows, Work,
    error::with_causes,
    ports::{BatcherHook, Between, RowsFactory, StudentFactory, TeacherFactory},
};
use ddk_corpus::{PreparedDomain, Sample, Sequence, SequenceReader};
use ddk_engine::{EngineError, Evaluation, FlopCounter, Teacher, TeacherOutput, Trainable};
use ddk_model::{Model, ModelError};
use ddk_objective::Detail;
use ddk_run::{MicroBatchSums, PhaseSeconds, SnapshotFile, StepPhase, UpdateStats};
use ddk_settings::Settings;
use ddk_torch::{ComputeContext, TimeSlice, TorchError, give_freed_memory_back};
use tch::Tensor;

pub use self::models::{
    ModelFolders, Models, kind, needs_teacher_output, student_placement, teacher_placement,
};
use crate::{
    faults::{Faults, Place},
    phase::Phase,
};

/// Builds the ports of a generation of workers.
pub struct Ports {
    pub models: Models,
    /// How to measure perplexities.
    pub evaluation: Evaluation,
    pub turns: TimeSlice,
    pub faults: Arc<Faults>,
}

impl Ports {
    /// Returns the hook that the batcher calls before each step.
    pub fn batcher(&self) -> BatcherHook {
        let faults = Arc::clone(&self.faults);
        Arc::new(move |step| faults.worker(Place::Batcher, step).map(drop))
    }

    /// Returns a factory that opens a domain at a cursor.
    pub fn rows(&self, domains: Vec<Arc<PreparedDomain>>) -> RowsFactory {
        let (seed, faults) = (self.models.settings.run.seed, Arc::clone(&self.faults));
        Arc::new(move |index, cursor| {
            let domain = Arc::clone(&domains[index]);
            Ok(Box::new(RowsPort {
                reader: SequenceReader::new(domain, index as u16, seed, cursor),
                read: 0,
                faults: Arc::clone(&faults),
            }))
        })
    }

    /// Returns a factory that builds teachers on their threads. `known`: whether the teacher's perplexities are known.
    /// A worker that neither labels nor measures holds no model.
    pub fn teachers(self: &Arc<Self>, known: bool) -> TeacherFactory<TeacherPort> {
        let ports = Arc::clone(self);
        Arc::new(move |number| {
            let models = &ports.models;
            let build = || -> Result<TeacherPort> {
                let context = Context::new(models.teacher_context(number, &ports.turns)?, &ports);
                let needs_output = models.asks_teacher();
                let has_work = needs_output || (number == 0 && !known);
                let teacher = || context.work(Work::Label, || models.teacher(number));
                Ok(TeacherPort {
                    teacher: has_work.then(teacher).transpose()?,
                    context,
                    needs_output,
                    copy: None,
                })
            };
            build().map_err(|error| port_error(error, Work::Label))
        })
    }

    /// Returns a factory that builds the student on its thread. `checkpoint`: the one to resume from; by default, the
    /// student starts from its folder.
    pub fn student(
        self: &Arc<Self>,
        row_losses: Detail,
        checkpoint: Option<PathBuf>,
        records: Vec<Record>,
        live: Arc<Live>,
    ) -> StudentFactory<StudentPort> {
        let ports = Arc::clone(self);
        Box::new(move || {
            ports.faults.phase(Phase::Load)?;
            let models = &ports.models;
            let build = || -> Result<StudentPort> {
                let context = Context::new(models.student_context(&ports.turns)?, &ports);
                let flops = models.flop_counter()?;
                let learner = || models.learner(checkpoint.as_deref(), row_losses);
                Ok(StudentPort {
                    student: context.work(Work::Train, learner)?,
                    context,
                    flops,
                    records,
                    live,
                })
            };
            build().map_err(|error| port_error(error, Work::Train))
        })
    }
}

struct RowsPort {
    reader: SequenceReader,
    read: u64,
    faults: Arc<Faults>,
}

impl Rows for RowsPort {
    fn read(&mut self) -> Result<Sample, PortError> {
        self.read += 1;
        self.faults.worker(Place::Loader, self.read)?;
        let sample = self.reader.read();
        sample.map_err(|error| PortError::Data(with_causes(&error)))
    }
}

/// Compute context of a worker, with the inputs of its port.
struct Context {
    compute: ComputeContext,
    ports: Arc<Ports>,
    /// Student evaluations so far.
    evaluations: u64,
}

impl Context {
    fn new(compute: ComputeContext, ports: &Arc<Ports>) -> Self {
        Self {
            compute,
            ports: Arc::clone(ports),
            evaluations: 0,
        }
    }

    /// Runs work on the worker ([`ComputeContext::work`]).
    fn work<T>(&self, kind: Work, work: impl FnOnce() -> Result<T>) -> Result<T, PortError> {
        let done = self.compute.work(work).map_err(Error::from);
        done.flatten().map_err(|error| port_error(error, kind))
    }

    /// Runs work in the worker's turn ([`ComputeContext::work_in_turn`]). Also returns the seconds spent waiting
    /// for it.
    fn work_in_turn<T>(
        &self,
        kind: Work,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, f64), PortError> {
        let waited = self.compute.waited_seconds();
        let done = self.compute.work_in_turn(work).map_err(Error::from);
        let done = done.flatten().map_err(|error| port_error(error, kind))?;
        Ok((done, self.compute.waited_seconds() - waited))
    }

    /// Measures a student's perplexities. An injected fault may turn them into NaN.
    fn evaluate<'a>(
        &mut self,
        model: impl FnOnce() -> Result<&'a Model>,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        self.evaluations += 1;
        let (evaluation, faults) = (&self.ports.evaluation, &self.ports.faults);
        let documents = evaluation.validation.iter().map(Vec::len).sum::<usize>();
        let told = || between(0, documents as u64);
        let nan = faults.worker_until(Place::Evaluation, self.evaluations, &told)?;
        let measure = || Ok(evaluation.perplexities(model()?, between)?);
        let mut measured = self.work(Work::Evaluate, measure)?;
        if let (true, Some(perplexities)) = (nan, &mut measured) {
            perplexities.fill(f64::NAN);
        }
        Ok(measured)
    }
}

/// The sequences of a micro-batch.
fn sequences(batch: &MicroBatch) -> Vec<&Sequence> {
    let samples = batch.samples.iter();
    samples.map(|sample| &sample.sequence).collect()
}

/// Converts an error for the actors, which treat running out of memory separately: smaller sizes help then.
fn port_error(error: impl Into<Error>, during: Work) -> PortError {
    error.into().downcast().unwrap_or_else(|error| {
        let message = with_causes(error.as_ref());
        let engine = error.downcast_ref().map(EngineError::is_out_of_memory);
        let model = || error.downcast_ref().map(ModelError::is_out_of_memory);
        let torch = || error.downcast_ref().map(TorchError::is_out_of_memory);
        match engine.or_else(model).or_else(torch) {
            Some(true) => PortError::OutOfMemory { during, message },
            _ => PortError::Other(message),
        }
    })
}

/// A teacher on its worker.
pub struct TeacherPort {
    context: Context,
    /// Absent if it has no work.
    teacher: Option<Teacher>,
    /// Whether batches need the teacher's output.
    needs_output: bool,
    /// Holds copies of the student that are evaluated here; built for the first one.
    copy: Option<Model>,
}

impl ddk_actors::Teacher for TeacherPort {
    type TeacherOutput = Option<TeacherOutput>;
    type Weights = Vec<Tensor>;

    fn label(&mut self, batch: &MicroBatch) -> Result<Option<TeacherOutput>, PortError> {
        let faults = &self.context.ports.faults;
        let nan = faults.worker(Place::Teacher, batch.step)?;
        let Some(teacher) = self.teacher.as_ref().filter(|_| self.needs_output) else {
            return Ok(None);
        };
        let label = || {
            let mut output = teacher.label(&sequences(batch))?;
            if nan {
                output.poison()?;
            }
            Ok(Some(output))
        };
        Ok(self.context.work_in_turn(Work::Label, label)?.0)
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        let ports = &self.context.ports;
        let perplexities = self.context.work(Work::Evaluate, || {
            let teacher = self.teacher.as_ref();
            let teacher =
                teacher.context("cannot measure perplexities: this compute has no teacher")?;
            Ok(ports.evaluation.perplexities(teacher.model(), between)?)
        })?;
        if !self.needs_output {
            // Nothing else needs the teacher.
            self.teacher = None;
            ports.models.folders.frozen.forget();
        }
        // Evaluation batches are larger than later ones.
        give_freed_memory_back();
        Ok(perplexities)
    }

    fn perplexities_of(
        &mut self,
        weights: &Vec<Tensor>,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let (copy, ports) = (&mut self.copy, Arc::clone(&self.context.ports));
        let copied = || {
            let model = match copy {
                Some(model) => model,
                none => {
                    let mut model = ports.models.initial()?;
                    // Trainable like the student: a frozen model computes its layers differently, so the last bits
                    // would differ.
                    model.set_trainable(true);
                    none.insert(model)
                }
            };
            model.set_parameters(weights)?;
            Ok(&*model)
        };
        self.context.evaluate(copied, between)
    }

    fn busy_seconds(&self) -> f64 {
        self.context.compute.busy_seconds()
    }
}

/// Name and text of a file in every checkpoint beside the student's own: the run's inputs, or the versions that
/// wrote it.
pub type Record = (&'static str, Arc<[u8]>);

/// The student on its worker.
pub struct StudentPort {
    context: Context,
    student: Box<dyn Trainable>,
    flops: FlopCounter,
    records: Vec<Record>,
    live: Arc<Live>,
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
        let faults = &self.context.ports.faults;
        // The NaN must come from the engine, because the engine skips the step.
        if faults.worker(Place::Student, batch.step)? {
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
        let stats = self.student.discard(step, reason);
        let mut stats = stats.map_err(|error| port_error(error, Work::Train))?;
        stats.seconds =
            PhaseSeconds::from([(StepPhase::TeacherWait, 0.0), (StepPhase::Optimizer, 0.0)]);
        Ok(stats)
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        self.context.evaluate(|| Ok(self.student.model()), between)
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
