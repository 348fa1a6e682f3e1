//! State and helpers that the teacher's and the student's ports share.

use std::sync::Arc;

use anyhow::{Error, Result};
use ddk_actors::{MicroBatch, PortError, Work, error::with_causes, ports::Between};
use ddk_corpus::Sequence;
use ddk_engine::{EngineError, Evaluation};
use ddk_model::{Model, ModelError};
use ddk_torch::{ComputeContext, TorchError};

use crate::faults::{Faults, Place};

/// State of a port: the worker's compute context, injected faults, and how to measure perplexities.
pub(super) struct Context {
    pub(super) compute: ComputeContext,
    pub(super) faults: Arc<Faults>,
    pub(super) evaluation: Evaluation,
    /// Student evaluations so far.
    pub(super) evaluations: u64,
}

impl Context {
    pub(super) fn new(
        compute: ComputeContext,
        faults: &Arc<Faults>,
        evaluation: &Evaluation,
    ) -> Self {
        Self {
            compute,
            faults: Arc::clone(faults),
            evaluation: evaluation.clone(),
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

    /// Measures a student's perplexities. An injected fault may turn them into NaN.
    pub(super) fn evaluate<'a>(
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
        let measure = || Ok(self.evaluation.perplexities(model()?, between)?);
        let measured = self.work(Work::Evaluate, measure)?;
        Ok(measured.map(|perplexities| {
            if nan {
                vec![f64::NAN; perplexities.len()]
            } else {
                perplexities
            }
        }))
    }
}

/// The sequences of a micro-batch.
pub(super) fn sequences(batch: &MicroBatch) -> Vec<&Sequence> {
    let samples = batch.samples.iter();
    samples.map(|sample| &sample.sequence).collect()
}

/// Converts an error for the actors, which treat running out of memory separately: smaller sizes help then.
pub(super) fn port_error(error: Error, during: Work) -> PortError {
    let error = match error.downcast() {
        Ok(error) => return error,
        Err(error) => error,
    };
    let text = with_causes(error.as_ref());
    let engine = error.downcast_ref().map(EngineError::is_out_of_memory);
    let model = || error.downcast_ref().map(ModelError::is_out_of_memory);
    let torch = || error.downcast_ref().map(TorchError::is_out_of_memory);
    if engine.or_else(model).or_else(torch) == Some(true) {
        PortError::OutOfMemory {
            during,
            message: text,
        }
    } else {
        PortError::Other(text)
    }
}
