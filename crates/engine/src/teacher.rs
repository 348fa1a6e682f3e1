//! The frozen teacher: labels batches with what the student's lane needs to rebuild its logits.

use ddk_model::Model;
use tch::{Device, Tensor};

use crate::{
    EngineError,
    batch::{Sequence, batch_tensors},
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
    /// Hidden states after the final norm.
    Hidden {
        /// `[positions, d_model]` in the teacher's dtype, on the student's device.
        last: Tensor,
    },
}

impl Signal {
    /// Makes it not a number, for faults on purpose.
    pub fn poison(&mut self) -> Result<(), EngineError> {
        if let Self::Hidden { last } = self {
            *last = last
                .f_full_like(f64::NAN)
                .map_err(ddk_torch::TorchError::from)?;
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
}

impl Teacher {
    /// Freezes `model`; its signals are moved to `student_device`.
    pub fn new(mut model: Model, student_device: Device) -> Self {
        model.set_trainable(false);
        Self {
            model,
            student_device,
        }
    }

    /// The model itself.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Hidden states of every position of `rows` (padded on the right to the longest).
    pub fn label(&self, rows: &[Sequence<'_>]) -> Result<Signal, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let batch = batch_tensors(rows, self.model.device())?;
        let hidden = self.model.hidden(&batch.tokens, batch.parts.as_deref())?;
        let width = hidden.size().last().copied().unwrap_or(0);
        let last = hidden
            .f_reshape([-1, width])
            .and_then(|hidden| hidden.f_to_device(self.student_device))
            .map_err(ddk_torch::TorchError::from)?;
        Ok(Signal::Hidden { last })
    }
}
