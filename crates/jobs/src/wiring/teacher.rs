//! Connects the teacher's port to what computes its hidden states (a model in this process, or a server) and to the
//! cache on disk.

use std::sync::Arc;

use anyhow::Result;
use ddk_actors::{
    MicroBatch, PortError, Work,
    ports::{Between, RunLink},
};
use ddk_corpus::Sequence;
use ddk_engine::{LabelFormat, Teacher, TeacherOutput};
use ddk_labels::{LabelError, LabelSet, Report};
use ddk_model::Model;
use ddk_run::{records::EventKind, texts::Text};
use ddk_telemetry::metrics;
use ddk_torch::{give_freed_memory_back, parse_device};
use tch::Tensor;

use super::{
    context::{Context, port_error, sequences},
    served::Served,
};
use crate::faults::Place;

/// A micro-batch's output of the teacher.
pub struct Labeled {
    pub output: TeacherOutput,
    /// Whether each sequence's label was in the cache.
    pub cached: Vec<bool>,
}

/// Labels of sequences, in order.
pub(crate) struct Found {
    labels: Vec<Vec<u8>>,
    /// Whether each was in the cache.
    cached: Vec<bool>,
}

/// What computes the teacher's hidden states.
enum Source {
    /// A model in this process. With a cache, it is loaded for the first label that is missing.
    Model(Option<Box<Teacher>>),
    Server(Box<Served>),
}

/// A teacher on its worker.
pub struct TeacherPort {
    context: Context,
    replica: usize,
    source: Source,
    format: LabelFormat,
    /// Whether batches need the teacher's output.
    needs_output: bool,
    /// Whether the teacher's perplexities are known.
    known: bool,
    /// Holds copies of the student that are evaluated here; built for the first one.
    copy: Option<Model>,
}

impl TeacherPort {
    /// Builds the teacher of a replica. `known`: whether the teacher's perplexities are known. A worker that neither
    /// labels nor measures holds no model.
    pub(super) fn new(context: Context, replica: usize, known: bool) -> Result<Self, PortError> {
        let models = &context.ports.models;
        let needs_output = models.asks_teacher();
        let source = if models.settings.teacher.is_served() {
            let served = Served::new(models, &context.ports.outages, replica);
            Source::Server(Box::new(
                served.map_err(|error| port_error(error, Work::Label))?,
            ))
        } else {
            Source::Model(None)
        };
        let format = models.label_format();
        let mut port = Self {
            source,
            format: format.map_err(|error| port_error(error, Work::Label))?,
            needs_output,
            known,
            replica,
            copy: None,
            context,
        };
        let has_work = needs_output || (replica == 0 && !known);
        if has_work
            && port.context.ports.labels.is_none()
            && let Source::Model(teacher) = &mut port.source
        {
            load(teacher, &port.context, replica)?;
        }
        Ok(port)
    }

    /// Labels sequences together; `None` if the run ended first.
    fn compute(
        &mut self,
        rows: &[&Sequence],
        run: &dyn RunLink,
    ) -> Result<Option<TeacherOutput>, PortError> {
        match &mut self.source {
            Source::Model(teacher) => {
                let teacher = load(teacher, &self.context, self.replica)?;
                let label = || Ok(Some(teacher.label(rows)?));
                Ok(self.context.work_in_turn(Work::Label, label)?.0)
            }
            Source::Server(served) => {
                let labels = served.labels(rows, run)?;
                labels.map(|labels| self.join(rows, &labels)).transpose()
            }
        }
    }

    /// Labels each sequence as if it were the only one, so that its label does not depend on the others.
    fn compute_alone(
        &mut self,
        rows: &[&Sequence],
        run: &dyn RunLink,
    ) -> Result<Option<Vec<Vec<u8>>>, PortError> {
        match &mut self.source {
            Source::Model(teacher) => {
                let teacher = load(teacher, &self.context, self.replica)?;
                let alone = |row| Ok(self.format.label(&teacher.label(&[row])?.hidden)?);
                let label = || rows.iter().map(|row| alone(row)).collect();
                let labels: Vec<Vec<u8>> = self.context.work_in_turn(Work::Label, label)?.0;
                Ok(Some(labels))
            }
            Source::Server(served) => served.labels(rows, run),
        }
    }

    /// Returns the labels of sequences, and whether each was in the cache. Adds the others to the cache.
    pub(crate) fn look_up(
        &mut self,
        set: &LabelSet,
        rows: &[&Sequence],
        run: &dyn RunLink,
    ) -> Result<Option<Found>, PortError> {
        let cache = |error| port_error(error, Work::Label);
        let ids: Vec<[u8; 32]> = rows.iter().map(|row| row.id()).collect();
        let mut labels = Vec::with_capacity(rows.len());
        for id in &ids {
            labels.push(set.get(id).map_err(cache)?);
        }
        let cached: Vec<bool> = labels.iter().map(Option::is_some).collect();
        let is_missing = |index: &usize| !cached[*index];
        let missing: Vec<usize> = (0..rows.len()).filter(is_missing).collect();
        if !missing.is_empty() {
            let rows: Vec<&Sequence> = missing.iter().map(|index| rows[*index]).collect();
            let Some(computed) = self.compute_alone(&rows, run)? else {
                return Ok(None);
            };
            for (index, label) in missing.iter().zip(computed) {
                match set.put(&ids[*index], &label) {
                    // Its teacher was not here when the run started.
                    Err(LabelError::ReadOnly { .. }) => {}
                    put => drop(put.map_err(cache)?),
                }
                labels[*index] = Some(label);
            }
            metrics::CACHE_BYTES.with(&[]).set(set.stats().bytes as f64);
        }
        let hits = (rows.len() - missing.len()) as u64;
        metrics::CACHE_SEQUENCES.with(&["hit"]).increment(hits);
        metrics::CACHE_SEQUENCES
            .with(&["miss"])
            .increment(missing.len() as u64);
        for report in set.take_reports() {
            let kind = match report {
                Report::Damaged { .. } => EventKind::LabelDamaged,
                _ => EventKind::CacheFull,
            };
            run.note(kind, &report.to_string());
        }
        let labels = labels.into_iter().flatten().collect();
        Ok(Some(Found { labels, cached }))
    }

    /// Joins the labels of a batch for the student's device.
    fn join(&self, rows: &[&Sequence], labels: &[Vec<u8>]) -> Result<TeacherOutput, PortError> {
        let models = &self.context.ports.models;
        self.context.work(Work::Label, || {
            let device = parse_device(&models.settings.student.device)?;
            Ok(TeacherOutput {
                hidden: self.format.hidden(rows, labels, device)?,
                layers: Vec::new(),
            })
        })
    }

    /// Measures the perplexities of a served teacher with its LM head.
    fn served_perplexities(
        &mut self,
        run: &dyn RunLink,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let ports = Arc::clone(&self.context.ports);
        let head = || ports.models.teacher_head();
        let head = self.context.work(Work::Evaluate, head)?;
        let hidden = |rows: &[&Sequence], _: &Tensor| -> Result<Option<Tensor>> {
            let output = self.compute(rows, run)?;
            Ok(output.map(|output| output.hidden))
        };
        let measured = ports
            .teacher_evaluation
            .perplexities_by(&head, between, hidden);
        measured.map_err(|error| port_error(error, Work::Evaluate))
    }
}

/// Returns the model of a replica, after loading it if that has not happened yet.
fn load<'a>(
    teacher: &'a mut Option<Box<Teacher>>,
    context: &Context,
    replica: usize,
) -> Result<&'a Teacher, PortError> {
    match teacher {
        Some(teacher) => Ok(teacher),
        none => {
            let models = &context.ports.models;
            let loaded = context.work(Work::Label, || models.teacher(replica))?;
            Ok(none.insert(Box::new(loaded)))
        }
    }
}

impl ddk_actors::Teacher for TeacherPort {
    type TeacherOutput = Option<Labeled>;
    type Weights = Vec<Tensor>;

    fn label(
        &mut self,
        batch: &MicroBatch,
        run: &dyn RunLink,
    ) -> Result<Option<Option<Labeled>>, PortError> {
        let ports = Arc::clone(&self.context.ports);
        let nan = ports.faults.worker(Place::Teacher, batch.step())?;
        if !self.needs_output {
            return Ok(Some(None));
        }
        let rows = sequences(batch);
        let labeled = match &ports.labels {
            None => {
                let output = self.compute(&rows, run)?;
                output.map(|output| (output, vec![false; rows.len()]))
            }
            Some(set) => match self.look_up(set, &rows, run)? {
                Some(found) => Some((self.join(&rows, &found.labels)?, found.cached)),
                None => None,
            },
        };
        let Some((mut output, cached)) = labeled else {
            return Ok(None);
        };
        if nan {
            let poisoned = output.poison();
            poisoned.map_err(|error| port_error(error, Work::Label))?;
        }
        Ok(Some(Some(Labeled { output, cached })))
    }

    fn perplexities(
        &mut self,
        run: &dyn RunLink,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let ports = Arc::clone(&self.context.ports);
        let perplexities = match &mut self.source {
            Source::Model(teacher) => {
                let model = load(teacher, &self.context, self.replica)?.model();
                let measure = || Ok(ports.teacher_evaluation.perplexities(model, between)?);
                self.context.work(Work::Evaluate, measure)?
            }
            Source::Server(_) => self.served_perplexities(run, between)?,
        };
        if let (false, Source::Model(teacher)) = (self.needs_output, &mut self.source) {
            // Nothing else needs the teacher.
            *teacher = None;
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

    fn texts(&mut self, is_over: &dyn Fn() -> bool) -> Result<Option<Vec<Text>>, PortError> {
        let (ports, folders) = (&self.context.ports, &self.context.ports.models.folders);
        let is_asked = ports.prompts.is_some() && ports.has_no_texts;
        // A server returns hidden states, and no text.
        let is_here = folders.has_teacher && !folders.head_only;
        let Source::Model(teacher) = &mut self.source else {
            return Ok(Some(Vec::new()));
        };
        if !is_asked || !is_here {
            return Ok(Some(Vec::new()));
        }
        let model = load(teacher, &self.context, self.replica)?.model();
        let texts = self.context.texts(|| Ok(model), is_over)?;
        if self.known && !self.needs_output {
            // Nothing else needs the teacher.
            *teacher = None;
            folders.frozen.forget();
        }
        Ok(texts)
    }

    fn texts_of_copy(
        &mut self,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Text>>, PortError> {
        match &self.copy {
            Some(copy) => self.context.texts(|| Ok(copy), is_over),
            None => Ok(Some(Vec::new())),
        }
    }

    fn busy_seconds(&self) -> f64 {
        let served = match &self.source {
            Source::Model(_) => 0.0,
            Source::Server(served) => served.seconds,
        };
        self.context.compute.busy_seconds() + served
    }
}
