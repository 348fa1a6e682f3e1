//! Connects the ports of `ddk-actors` to the engine and the corpus.

mod context;
mod models;
mod served;
mod student;
mod teacher;
mod texts;

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use ddk_actors::{
    Live, PortError, Rows, Work,
    error::with_causes,
    ports::{BatcherHook, RowsFactory, StudentFactory, TeacherFactory},
};
use ddk_corpus::{PreparedDomain, Sample, SequenceReader};
use ddk_objective::Detail;

use self::context::{Context, port_error};
pub use self::{
    context::Ports,
    models::{
        ModelFolders, Models, kind, needs_teacher_output, student_placement, teacher_placement,
    },
    served::server,
    student::{Record, StudentPort},
    teacher::TeacherPort,
    texts::Prompts,
};
use crate::{
    faults::{Faults, Place},
    phase::Phase,
};

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
                let compute = models.teacher_context(number, &ports.turns)?;
                let context = Context::new(compute, &ports, &ports.teacher_evaluation);
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
                let compute = models.student_context(&ports.turns)?;
                let context = Context::new(compute, &ports, &ports.evaluation);
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
