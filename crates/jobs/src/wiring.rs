//! Connects the ports of `ddk-actors` to the engine and the corpus.

mod context;
mod models;
mod student;
mod teacher;

use std::sync::Arc;

use ddk_actors::{
    PortError, Rows,
    error::with_causes,
    ports::{BatcherHook, RowsFactory},
};
use ddk_corpus::{PreparedDomain, Sample, SequenceReader};

pub use self::{
    models::{
        ModelFolders, Record, StudentStart, build_student, build_teacher, flop_counter, kind,
        needs_teacher_output, student_placement, teacher_placement,
    },
    student::{StudentPort, student},
    teacher::{TeacherPort, teachers},
};
use crate::faults::{Faults, Place};

/// Returns the hook that the batcher calls before each step.
pub fn batcher(faults: Arc<Faults>) -> BatcherHook {
    Arc::new(move |step| faults.worker(Place::Batcher, step).map(drop))
}

/// Returns a factory that opens a domain at a cursor.
pub fn rows(domains: Vec<Arc<PreparedDomain>>, seed: u64, faults: Arc<Faults>) -> RowsFactory {
    Arc::new(move |domain, cursor| {
        Ok(Box::new(RowsPort {
            reader: SequenceReader::new(Arc::clone(&domains[domain]), domain as u16, seed, cursor),
            read: 0,
            faults: Arc::clone(&faults),
        }))
    })
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
        self.reader
            .read()
            .map_err(|error| PortError::Data(with_causes(&error)))
    }
}
