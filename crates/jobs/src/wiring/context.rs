//! What the ports of a generation share, and the compute context of each worker.

use std::sync::Arc;

use anyhow::{Error, Result};
use ddk_actors::{MicroBatch, PortError, Work, error::with_causes, ports::Between};
use ddk_corpus::Sequence;
use ddk_engine::{EngineError, Evaluation};
use ddk_labels::LabelSet;
use ddk_model::{Model, ModelError};
use ddk_run::texts::Text;
use ddk_torch::{ComputeContext, TimeSlice, TorchError};

use super::{models::Models, served::Outages, texts::Prompts};
use crate::faults::{Faults, Place};

/// Builds the ports of a generation of workers.
pub struct Ports {
    pub models: Models,
    /// How to measure the student's perplexities, together with the other ranks.
    pub evaluation: Evaluation,
    /// How to measure perplexities on the first teacher's thread.
    pub teacher_evaluation: Evaluation,
    /// The cache of the teacher's outputs, if the run has one.
    pub labels: Option<Arc<LabelSet>>,
    /// The servers of the teacher that are away.
    pub outages: Arc<Outages>,
    /// The prompts that the models continue, if there are any.
    pub prompts: Option<Prompts>,
    /// Whether the run has no texts yet, so that the teacher writes too.
    pub has_no_texts: bool,
    pub turns: TimeSlice,
    pub faults: Arc<Faults>,
}

/// Compute context of a worker, with the inputs of its port.
pub struct Context {
    pub(super) compute: ComputeContext,
    pub(super) ports: Arc<Ports>,
    /// How to measure perplexities on this thread.
    pub(super) evaluation: Evaluation,
    /// Student evaluations so far.
    evaluations: u64,
}

impl Context {
    pub(super) fn new(
        compute: ComputeContext,
        ports: &Arc<Ports>,
        evaluation: &Evaluation,
    ) -> Self {
        Self {
            compute,
            evaluation: evaluation.clone(),
            ports: Arc::clone(ports),
            evaluations: 0,
        }
    }

    /// Runs work on the worker ([`ComputeContext::work`]).
    pub(super) fn work<T>(
        &self,
        kind: Work,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T, PortError> {
        let done = self.compute.work(work).map_err(Error::from);
        done.flatten().map_err(|error| port_error(error, kind))
    }

    /// Runs work in the worker's turn ([`ComputeContext::work_in_turn`]). Also returns the seconds spent waiting
    /// for it.
    pub(super) fn work_in_turn<T>(
        &self,
        kind: Work,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<(T, f64), PortError> {
        let waited = self.compute.waited_seconds();
        let done = self.compute.work_in_turn(work).map_err(Error::from);
        let done = done.flatten().map_err(|error| port_error(error, kind))?;
        Ok((done, self.compute.waited_seconds() - waited))
    }

    /// What a model writes after the prompts; `None` if the run ended first.
    pub(super) fn texts<'a>(
        &self,
        model: impl FnOnce() -> Result<&'a Model>,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Text>>, PortError> {
        let Some(prompts) = &self.ports.prompts else {
            return Ok(Some(Vec::new()));
        };
        self.work(Work::Evaluate, || prompts.write(model()?, is_over))
    }

    /// Measures a student's perplexities. An injected fault may turn them into NaN.
    pub(super) fn evaluate<'a>(
        &mut self,
        model: impl FnOnce() -> Result<&'a Model>,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        self.evaluations += 1;
        let (evaluation, faults) = (&self.evaluation, &self.ports.faults);
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
pub(super) fn sequences(batch: &MicroBatch) -> Vec<&Sequence> {
    let samples = batch.samples().iter();
    samples.map(|sample| &sample.sequence).collect()
}

/// Converts an error for the actors, which treat running out of memory separately: smaller sizes help then.
pub(super) fn port_error(error: impl Into<Error>, during: Work) -> PortError {
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
