//! Measures how much each layer of a model changes its input: the block influence of ShortGPT (Men et al., 2024,
//! arXiv 2403.03853).

use ddk_corpus::Sequence;
use ddk_model::Model;
use tch::{Kind, Tensor};

use crate::{EngineError, Evaluation, batch::batch_tensors};

impl Evaluation {
    /// Returns each layer's block influence: 1 minus the mean cosine similarity between its input and its output, over
    /// all positions of all validation documents. A layer of influence 0 changes no direction.
    ///
    /// Calls `between` before each batch with the number of finished documents and the number of all documents. If
    /// `between` returns true, the measurement returns `None`.
    ///
    /// # Errors
    /// If a token id is not below the vocabulary size, or if libtorch fails.
    pub fn block_influence(
        &self,
        model: &Model,
        between: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Option<Vec<f64>>, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let batches = self.batches();
        let all = batches.iter().map(|(_, rows)| rows.len() as u64).sum();
        let mut sums = vec![0.0; model.config().layers() as usize];
        let (mut positions, mut done) = (0, 0);
        for (_, rows) in &batches {
            if between(done, all) {
                return Ok(None);
            }
            done += rows.len() as u64;
            let batch = batch_tensors(rows, self.vocabulary, model.device())?;
            let states = model.layer_states(&batch.tokens)?;
            let is_text_bt = is_text(rows, &batch.tokens)?;
            positions += rows.iter().map(|row| row.tokens.len() as u64).sum::<u64>();
            for (layer, sum) in sums.iter_mut().enumerate() {
                let [input, output] = [&states[layer], &states[layer + 1]];
                let similarity_bt = cosine(input, &output.f_to_device(input.device())?)?;
                let of_text = similarity_bt.f_mul(&is_text_bt.f_to_device(input.device())?)?;
                *sum += of_text.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
        }
        let influence = |sum| 1.0 - sum / positions as f64;
        Ok(Some(sums.into_iter().map(influence).collect()))
    }
}

/// Cosine similarity of the vectors of two `[B, T, D]`: `[B, T]`, in fp32.
fn cosine(one: &Tensor, other: &Tensor) -> Result<Tensor, EngineError> {
    let [one, other] = [one.f_to_kind(Kind::Float)?, other.f_to_kind(Kind::Float)?];
    Ok(Tensor::f_cosine_similarity(&one, &other, -1, 1e-8)?)
}

/// 1 for the positions of the documents, and 0 for padding: `[B, T]`.
fn is_text(rows: &[&Sequence], tokens: &Tensor) -> Result<Tensor, EngineError> {
    let time = tokens.size()[1];
    let of_row = |row: &&Sequence| {
        let length = row.tokens.len() as i64;
        (0..time).map(move |position| f32::from(u8::from(position < length)))
    };
    let values: Vec<f32> = rows.iter().flat_map(of_row).collect();
    Ok(Tensor::f_from_slice(&values)?.f_view([rows.len() as i64, time])?)
}
