//! Joins the ports of `ddk-actors` to the engine and the corpus.

mod models;
mod student;
mod teacher;

use std::sync::Arc;

use anyhow::{Error, Result};
use ddk_actors::{
    MicroBatch, PortError, Rows,
    error::with_causes,
    ports::{BatcherHook, Between, RowsFactory},
};
use ddk_corpus::{PreparedDomain, RowReader, Sample, Sequence};
use ddk_engine::{EngineError, Evaluation};
use ddk_model::{Model, ModelError};
use ddk_settings::{MixturePolicy, Settings};
use ddk_torch::{Lane, TorchError};

use self::models::build_learner;
pub use self::{
    models::{
        ModelFolders, build_student, build_teacher, flop_counter, kind, student_placement,
        teacher_placement,
    },
    student::{StudentStart, student},
    teacher::teachers,
};
use crate::{
    faults::{Faults, Place},
    objective,
};

/// Whether the loss or the mixture uses the teacher's output for each batch. If not, the teacher makes no
/// forward pass.
pub fn needs_teacher_output(settings: &Settings) -> bool {
    objective::of_settings(&settings.objective).needs_teacher_output()
        || settings.mixture.policy == MixturePolicy::DoremiProxy
}

/// A file that every checkpoint holds beside the student's own: what the run is made from, and what wrote it.
pub type Record = (&'static str, Arc<[u8]>);

/// What the batcher calls before each step.
pub fn batcher(faults: Arc<Faults>) -> BatcherHook {
    Arc::new(move |step| faults.worker(Place::Batcher, step).map(drop))
}

/// Opens domains at a cursor.
pub fn rows(domains: Vec<Arc<PreparedDomain>>, seed: u64, faults: Arc<Faults>) -> RowsFactory {
    Arc::new(move |domain, cursor| {
        Ok(Box::new(RowsPort {
            reader: RowReader::new(Arc::clone(&domains[domain]), domain as u16, seed, cursor),
            read: 0,
            faults: Arc::clone(&faults),
        }))
    })
}

struct RowsPort {
    reader: RowReader,
    read: u64,
    faults: Arc<Faults>,
}

impl Rows for RowsPort {
    fn read(&mut self) -> Result<Sample, PortError> {
        self.read += 1;
        self.faults.worker(Place::Loader, self.read)?;
        self.reader
            .read()
            .map_err(|error| PortError::Data(with_causes(&error)))
    }
}

fn sequences(batch: &MicroBatch) -> Vec<&Sequence> {
    let samples = batch.samples.iter();
    samples.map(|sample| &sample.sequence).collect()
}

/// What both models' ports have: a lane to compute on, faults on purpose, and how perplexities are measured.
struct Context {
    lane: Lane,
    faults: Arc<Faults>,
    evaluation: Evaluation,
    /// Evaluations of the student made so far.
    evaluations: u64,
}

impl Context {
    fn new(lane: Lane, faults: &Arc<Faults>, evaluation: &Evaluation) -> Self {
        Self {
            lane,
            faults: Arc::clone(faults),
            evaluation: evaluation.clone(),
            evaluations: 0,
        }
    }

    /// Does a piece of the lane's work ([`Lane::work`]).
    fn work<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T, PortError> {
        let done = self.lane.work(work).map_err(Error::from);
        done.flatten().map_err(port_error)
    }

    /// Does a piece of it in its turn ([`Lane::work_in_turn`]); also the seconds waited for that.
    fn work_in_turn<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(T, f64), PortError> {
        let waited = self.lane.waited_seconds();
        let done = self.lane.work_in_turn(work).map_err(Error::from);
        let done = done.flatten().map_err(port_error)?;
        Ok((done, self.lane.waited_seconds() - waited))
    }

    /// Perplexities of a student. A fault may strike, and may ask for numbers that are none.
    fn evaluate<'a>(
        &mut self,
        model: impl FnOnce() -> Result<&'a Model>,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        self.evaluations += 1;
        let documents = self
            .evaluation
            .validation
            .iter()
            .map(Vec::len)
            .sum::<usize>() as u64;
        let told = || between(0, documents);
        let place = Place::Evaluation;
        let nan = self.faults.worker_until(place, self.evaluations, &told)?;
        let measured = self.work(|| Ok(self.evaluation.perplexities(model()?, between)?))?;
        Ok(measured.map(|perplexities| {
            if nan {
                vec![f64::NAN; perplexities.len()]
            } else {
                perplexities
            }
        }))
    }
}

/// An error as the actors tell errors apart: smaller sizes help where a device ran out of memory.
fn port_error(error: Error) -> PortError {
    let error = match error.downcast() {
        Ok(error) => return error,
        Err(error) => error,
    };
    let text = with_causes(error.as_ref());
    let engine = error.downcast_ref().map(EngineError::is_out_of_memory);
    let model = || error.downcast_ref().map(ModelError::is_out_of_memory);
    let torch = || error.downcast_ref().map(TorchError::is_out_of_memory);
    if engine.or_else(model).or_else(torch) == Some(true) {
        PortError::OutOfMemory(text)
    } else {
        PortError::Other(text)
    }
}
