//! Perplexity of a model on validation documents.

use std::sync::Arc;

use ddk_corpus::Sequence;
use ddk_model::Model;
use ddk_objective::{HeadInput, cross_entropy_sum};
use ddk_torch::TorchError;

use crate::{EngineError, batch::batch_tensors};

/// What perplexities are measured on, and how. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Validation documents by domain.
    pub validation: Arc<Vec<Vec<Sequence>>>,
    /// Documents per batch.
    pub batch_rows: usize,
    /// Logits are cut to this many columns.
    pub vocabulary: i64,
    /// Positions whose logits exist at a time.
    pub chunk: i64,
}

impl Evaluation {
    /// Perplexity of `model` on each domain's documents: `exp` of the mean cross-entropy over all predicted tokens
    /// of the domain (token-weighted), each document on its own.
    ///
    /// Documents are put into batches by length, so that padding is rare; the grouping depends on the documents
    /// alone, so that an evaluation made again gives the same bits. Documents without a prediction are left out.
    ///
    /// `between` is called before each batch with the documents done and those there are, of all domains
    /// together; where it says true, the evaluation is cut off and `None` returned.
    ///
    /// # Errors
    /// A token that is past the vocabulary, and what libtorch says.
    pub fn perplexities(
        &self,
        model: &Model,
        between: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Option<Vec<f64>>, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let head = model.head_for_products()?;
        let has_predictions = |document: &&Sequence| document.tokens.len() > 1;
        let all = self
            .validation
            .iter()
            .flatten()
            .filter(has_predictions)
            .count() as u64;
        let mut done = 0;
        let mut perplexities = Vec::with_capacity(self.validation.len());
        for documents in self.validation.iter() {
            let mut by_length: Vec<&Sequence> = documents.iter().filter(has_predictions).collect();
            by_length.sort_by_key(|document| std::cmp::Reverse(document.tokens.len()));
            let (mut total, mut predictions) = (0.0, 0);
            for rows in by_length.chunks(self.batch_rows.max(1)) {
                if between(done, all) {
                    return Ok(None);
                }
                done += rows.len() as u64;
                let batch = batch_tensors(rows, self.vocabulary, model.device())?;
                let hidden = model.hidden(&batch.tokens, None)?;
                let width = hidden.size().last().copied().unwrap_or(0);
                let hidden = hidden.f_reshape([-1, width]).map_err(TorchError::from)?;
                let (sum, count) = cross_entropy_sum(
                    &HeadInput::new(&hidden, &head),
                    &batch.labels,
                    self.vocabulary,
                    self.chunk,
                )?;
                total += sum;
                predictions += count;
            }
            perplexities.push((total / predictions as f64).exp());
        }
        Ok(Some(perplexities))
    }
}
