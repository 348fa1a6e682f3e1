//! The frozen teacher: labels batches with what the student's lane needs to rebuild its logits.

use ddk_corpus::Sequence;
use ddk_model::{Model, safetensors::read_tensors};
use ddk_torch::TorchError;
use tch::{Device, Tensor};

use crate::{
    EngineError,
    batch::batch_tensors,
    filters::{Filters, read_filter},
};

/// What a teacher says about a batch.
///
/// Hidden states are `d_model` numbers a position instead of a vocabulary of logits; the teacher's head is applied
/// beside the student, chunk by chunk, so that the KL is exact. An enum, because later teachers (a server, a cache on
/// disk) can only send their top tokens.
#[derive(Debug)]
pub enum Signal {
    /// Nothing: the loss leaves the teacher out, so that no forward was made.
    Nothing,
    /// Hidden states, each `[positions, d_model]` in the teacher's dtype, on the student's device.
    Hidden {
        /// After the final norm.
        last: Tensor,
        /// What comes out of the layers that the student's are compared with: behind the teacher's filters
        /// where those have been learnt (the same size, and one product less on the student's lane). Empty
        /// without TED.
        layers: Vec<Tensor>,
    },
}

impl Signal {
    /// Makes it not a number, for faults on purpose.
    pub fn poison(&mut self) -> Result<(), EngineError> {
        if let Self::Hidden { last, layers } = self {
            for hidden in [last].into_iter().chain(layers) {
                *hidden = hidden.f_full_like(f64::NAN).map_err(TorchError::from)?;
            }
        }
        Ok(())
    }
}

/// A frozen model on the lane that built it.
#[derive(Debug)]
pub struct Teacher {
    model: Model,
    /// Where signals are used.
    student_device: Device,
    /// Layers whose outputs are sent as well, from 1.
    layers: Vec<usize>,
    /// What they are sent through, `[d_model, d_model]` in the teacher's dtype; empty where they are sent as they are.
    filters: Vec<Tensor>,
}

impl Teacher {
    /// Freezes `model`; its signals are moved to `student_device`.
    pub fn new(mut model: Model, student_device: Device) -> Self {
        model.set_trainable(false);
        Self {
            model,
            student_device,
            layers: Vec::new(),
            filters: Vec::new(),
        }
    }

    /// Sends the layers of these filters as well.
    pub fn with_filters(mut self, filters: &Filters) -> Result<Self, EngineError> {
        self.layers = filters.teacher_layers();
        if let Some(path) = &filters.learnt {
            let file = read_tensors(path)?;
            let (device, kind) = (self.model.device(), self.model.head().weight.kind());
            for pair in &filters.pairs {
                let filter = read_filter(&file, &pair.of_teacher(), device)?;
                self.filters
                    .push(filter.f_to_kind(kind).map_err(TorchError::from)?);
            }
        }
        Ok(self)
    }

    /// The model itself.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Hidden states of every position of `rows` (padded on the right to the longest).
    pub fn label(&self, rows: &[&Sequence]) -> Result<Signal, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let batch = batch_tensors(rows, self.model.config().vocab_size(), self.model.device())?;
        let parts = batch.parts.as_deref();
        let (hidden, layers) = self
            .model
            .hidden_and_layers(&batch.tokens, parts, &self.layers)?;
        let layers = layers.into_iter().enumerate();
        Ok(Signal::Hidden {
            last: self.send(hidden, None)?,
            layers: layers
                .map(|(index, layer)| self.send(layer, self.filters.get(index)))
                .collect::<Result<_, _>>()?,
        })
    }

    /// `[batch, time, d_model]` as the student's lane takes it.
    fn send(&self, hidden: Tensor, filter: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let width = hidden.size().last().copied().unwrap_or(0);
        let mut hidden = hidden.f_reshape([-1, width])?;
        if let Some(filter) = filter {
            hidden = hidden.f_to_device(filter.device())?.f_mm(&filter.f_tr()?)?;
        }
        Ok(hidden.f_to_device(self.student_device)?)
    }
}
