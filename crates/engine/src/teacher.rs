//! The frozen teacher: labels batches with what the student's worker needs to rebuild its logits.

use ddk_corpus::Sequence;
use ddk_model::{Model, safetensors::read_tensors};
use ddk_torch::{TorchError, threads};
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

/// On the CPU, sequences with fewer tokens share no forward pass: libtorch computes very small matrices differently.
/// The test `labels` finds no difference from 32 tokens on.
const SHORT: usize = 32;

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
    /// On the CPU, a sequence's hidden states do not depend on the other rows, unless layers are sent too.
    ///
    /// # Errors
    /// If a token id is outside the vocabulary, if a layer to send does not exist, or if the forward pass fails.
    pub fn label(&self, rows: &[&Sequence]) -> Result<TeacherOutput, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let passes = self.passes(rows);
        let mut outputs = Vec::with_capacity(passes.len());
        for pass in &passes {
            let rows: Vec<&Sequence> = pass.iter().map(|row| rows[*row]).collect();
            outputs.push(self.forward(&rows)?);
        }
        let time = rows.iter().map(|row| row.tokens.len()).max();
        let time = time.unwrap_or(0).max(1) as i64;
        let mut layers = joined(rows.len(), time, &passes, outputs)?;
        let hidden = layers.remove(0);
        Ok(TeacherOutput { hidden, layers })
    }

    /// Groups the rows, by index, that one forward pass computes together.
    ///
    /// On the CPU, padding changes the last bits of a row. So does the number of rows if they are short, or if several
    /// threads share a matrix product. So only rows of one length share a pass there, with a single thread and if they
    /// are long enough.
    fn passes(&self, rows: &[&Sequence]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        if self.model.device() != Device::Cpu || !self.layers.is_empty() {
            return order
                .chunks(self.batch_rows)
                .map(<[usize]>::to_vec)
                .collect();
        }
        let kind = |row: &usize| {
            let row = rows[*row];
            (row.tokens.len(), row.document_lengths.is_empty())
        };
        order.sort_by_key(kind);
        let groups = order.chunk_by(|one, other| kind(one) == kind(other));
        let passes = groups.flat_map(|group| {
            let shares = threads() == 1 && kind(&group[0]).0 >= SHORT;
            let most = if shares { self.batch_rows } else { 1 };
            group.chunks(most).map(<[usize]>::to_vec)
        });
        passes.collect()
    }

    /// One forward pass: the hidden states of the rows, then the outputs of the layers to send.
    fn forward(&self, rows: &[&Sequence]) -> Result<Vec<Tensor>, EngineError> {
        let batch = batch_tensors(rows, self.model.config().vocab_size(), self.model.device())?;
        let parts = batch.parts.as_deref();
        let (hidden, layers) = self
            .model
            .hidden_and_layers(&batch.tokens, parts, &self.layers)?;
        let mut outputs = vec![self.send(hidden, None)?];
        for (index, layer) in layers.into_iter().enumerate() {
            outputs.push(self.send(layer, self.filters.get(index))?);
        }
        Ok(outputs)
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

/// Joins the outputs of several forward passes into tensors of `rows * time` positions, with zeros as padding.
fn joined(
    rows: usize,
    time: i64,
    passes: &[Vec<usize>],
    mut outputs: Vec<Vec<Tensor>>,
) -> Result<Vec<Tensor>, TorchError> {
    if outputs.len() == 1 {
        return Ok(outputs.remove(0));
    }
    let of = |output: usize| {
        let first = &outputs[0][output];
        let whole = Tensor::f_zeros(
            [rows as i64, time, first.size()[1]],
            (first.kind(), first.device()),
        )?;
        for (pass, tensors) in passes.iter().zip(&outputs) {
            let own = tensors[output].f_unflatten(0, [pass.len() as i64, -1])?;
            for (index, row) in pass.iter().enumerate() {
                let own = own.f_select(0, index as i64)?;
                let place = whole.f_select(0, *row as i64)?;
                place.f_narrow(0, 0, own.size()[0])?.f_copy_(&own)?;
            }
        }
        Ok(whole.f_flatten(0, 1)?)
    };
    (0..outputs[0].len()).map(of).collect()
}
