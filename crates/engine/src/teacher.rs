//! The frozen teacher: labels batches with what the student's worker needs to rebuild its logits.

use ddk_corpus::Sequence;
use ddk_model::{Model, safetensors::read_tensors};
use ddk_torch::TorchError;
use tch::{Device, Tensor};

use crate::{
    EngineError,
    batch::batch_tensors,
    filters::{Filters, read_filter},
};

/// A teacher's output for a batch.
///
/// Hidden states have `d_model` numbers per position, while logits have one per vocabulary entry. The student's
/// worker applies the teacher's LM head chunk by chunk, so the divergence is exact. All tensors are `[positions,
/// d_model]` in the teacher's dtype, on the student's device.
#[derive(Debug)]
pub struct TeacherOutput {
    /// Hidden states after the final norm.
    pub hidden: Tensor,
    /// Outputs of the layers that TED compares, after the teacher's filters if those were trained. Empty without TED.
    pub layers: Vec<Tensor>,
}

impl TeacherOutput {
    /// Replaces all numbers with NaN, for fault injection.
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn poison(&mut self) -> Result<(), EngineError> {
        for tensor in [&mut self.hidden].into_iter().chain(&mut self.layers) {
            *tensor = tensor.f_full_like(f64::NAN)?;
        }
        Ok(())
    }
}

/// A frozen model, on the worker that built it.
#[derive(Debug)]
pub struct Teacher {
    model: Model,
    /// The device that uses the outputs.
    student_device: Device,
    /// Layers whose outputs are sent too, counted from 1.
    layers: Vec<usize>,
    /// Filters for those outputs, `[d_model, d_model]` in the teacher's dtype. Empty if the outputs are sent
    /// unfiltered.
    filters: Vec<Tensor>,
    /// Sequences per forward pass.
    batch_rows: usize,
}

impl Teacher {
    /// Freezes `model`. Its outputs are moved to `student_device`.
    pub fn new(mut model: Model, student_device: Device) -> Self {
        model.set_trainable(false);
        Self {
            model,
            student_device,
            layers: Vec::new(),
            filters: Vec::new(),
            batch_rows: usize::MAX,
        }
    }

    /// Labels at most `rows` sequences per forward pass.
    pub fn with_batch_rows(mut self, rows: usize) -> Self {
        self.batch_rows = rows.max(1);
        self
    }

    /// Also sends the outputs of the layers that these filters compare.
    ///
    /// # Errors
    /// If the file of trained filters cannot be read or lacks a filter.
    pub fn with_filters(mut self, filters: &Filters) -> Result<Self, EngineError> {
        self.layers = filters.pairs.iter().map(|pair| pair.teacher).collect();
        if let Some(path) = &filters.learned {
            let file = read_tensors(path)?;
            let (device, kind) = (self.model.device(), self.model.head().kind());
            for pair in &filters.pairs {
                let filter = read_filter(&file, &pair.of_teacher(), device)?;
                self.filters.push(filter.f_to_kind(kind)?);
            }
        }
        Ok(self)
    }

    /// The model itself.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Computes the hidden states at every position of `rows`, padded on the right to the longest sequence.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, if a layer to send does not exist, or if the forward pass fails.
    pub fn label(&self, rows: &[&Sequence]) -> Result<TeacherOutput, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let batch = batch_tensors(rows, self.model.config().vocab_size(), self.model.device())?;
        let mut passes = Vec::new();
        for first in (0..rows.len()).step_by(self.batch_rows) {
            let count = self.batch_rows.min(rows.len() - first);
            let tokens = batch.tokens.f_narrow(0, first as i64, count as i64)?;
            let parts = batch.parts.as_deref();
            let parts = parts.map(|parts| &parts[first..first + count]);
            let (hidden, layers) = self.model.hidden_and_layers(&tokens, parts, &self.layers)?;
            let mut outputs = vec![self.send(hidden, None)?];
            for (index, layer) in layers.into_iter().enumerate() {
                outputs.push(self.send(layer, self.filters.get(index))?);
            }
            passes.push(outputs);
        }
        let mut layers = joined(passes)?;
        let hidden = layers.remove(0);
        Ok(TeacherOutput { hidden, layers })
    }

    /// Converts `[batch, time, d_model]` to what the student's worker takes.
    fn send(&self, hidden: Tensor, filter: Option<&Tensor>) -> Result<Tensor, TorchError> {
        let mut hidden = hidden.f_flatten(0, -2)?;
        if let Some(filter) = filter {
            hidden = hidden.f_to_device(filter.device())?.f_mm(&filter.f_tr()?)?;
        }
        Ok(hidden.f_to_device(self.student_device)?)
    }
}

/// Joins the outputs of several forward passes.
fn joined(mut passes: Vec<Vec<Tensor>>) -> Result<Vec<Tensor>, TorchError> {
    if passes.len() == 1 {
        return Ok(passes.remove(0));
    }
    let of = |output: usize| {
        let tensors: Vec<&Tensor> = passes.iter().map(|outputs| &outputs[output]).collect();
        Ok(Tensor::f_cat(&tensors, 0)?)
    };
    (0..passes[0].len()).map(of).collect()
}
