//! Connects the ports of `ddk-actors` to the engine and the corpus.

mod models;
mod served;
mod student;
mod teacher;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Error, Result};
use ddk_actors::{
    Live, MicroBatch, PortError, Rows, Work,
    error::with_causes,
    ports::{BatcherHook, Between, RowsFactory, StudentFactory, TeacherFactory},
};
use ddk_corpus::{PreparedDomain, Sample, Sequence, SequenceReader};
use ddk_engine::{EngineError, Evaluation};
use ddk_labels::LabelSet;
use ddk_model::{Model, ModelError};
use ddk_objective::Detail;
use ddk_torch::{ComputeContext, TimeSlice, TorchError};

pub use self::{
    models::{
        ModelFolders, Models, kind, needs_teacher_output, student_placement, teacher_placement,
    },
    served::server,
    student::{Record, StudentPort},
    teacher::{Labeled, TeacherPort},
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
    /// The cache of the teacher's outputs, if the run has one.
    pub labels: Option<Arc<LabelSet>>,
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
                Ok(TeacherPort::new(context, number, known)?)
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
