//! Joins the ports of `ddk-actors` to the engine and the corpus.

mod errors;
mod models;
mod student;
mod teacher;

use std::sync::Arc;

use ddk_actors::{
    MicroBatch, PortError, Rows,
    error::with_causes,
    ports::{BatcherHook, Between, RowsFactory},
};
use ddk_corpus::{Drawn, PreparedDomain, RowReader, Sequence};
use ddk_engine::{EngineError, domain_perplexities};
use ddk_model::Model;
use ddk_settings::{MixturePolicy, Settings};
use ddk_torch::Lane;

use self::{errors::torch_error, models::build_filters};
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

/// The validation documents of all domains, shared by the lanes.
pub type Validation = Arc<Vec<Vec<Sequence>>>;

/// How perplexities are measured.
#[derive(Clone)]
pub struct Evaluation {
    pub validation: Validation,
    pub batch_rows: usize,
    pub vocabulary: i64,
    pub chunk: i64,
}

impl Evaluation {
    /// Documents of all domains.
    fn documents(&self) -> u64 {
        self.validation.iter().map(Vec::len).sum::<usize>() as u64
    }

    pub fn perplexities(
        &self,
        model: &Model,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, EngineError> {
        domain_perplexities(
            model,
            &self.validation,
            self.batch_rows,
            self.vocabulary,
            self.chunk,
            between,
        )
    }
}

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
            reader: RowReader::new(Arc::clone(&domains[domain]), seed, cursor),
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
    fn read(&mut self) -> Result<Drawn, PortError> {
        self.read += 1;
        self.faults.worker(Place::Loader, self.read)?;
        self.reader
            .read()
            .map_err(|error| PortError::Data(with_causes(&error)))
    }
}

fn sequences(batch: &MicroBatch) -> Vec<&Sequence> {
    let rows = batch.rows.iter();
    rows.map(|row| &row.drawn.sequence).collect()
}

/// Does a piece of a lane's work ([`Lane::work`]).
fn work<T>(lane: &Lane, work: impl FnOnce() -> Result<T, PortError>) -> Result<T, PortError> {
    lane.work(work).map_err(torch_error)?
}

/// Does a piece of it in its turn ([`Lane::work_in_turn`]).
fn work_in_turn<T>(
    lane: &Lane,
    work: impl FnOnce() -> Result<T, PortError>,
) -> Result<T, PortError> {
    lane.work_in_turn(work).map_err(torch_error)?
}

/// What is measured, or numbers that are none where a fault asks for them.
fn broken_by(nan: bool, measured: Option<Vec<f64>>) -> Option<Vec<f64>> {
    if nan {
        measured.map(|perplexities| vec![f64::NAN; perplexities.len()])
    } else {
        measured
    }
}
