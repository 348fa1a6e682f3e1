//! Measures the perplexity of a model on validation documents.

use std::sync::Arc;

use ddk_corpus::Sequence;
use ddk_model::Model;
use ddk_objective::{HeadInput, cross_entropy_sum};
use tch::Tensor;

use crate::{EngineError, batch::batch_tensors};

/// The validation documents, and how to measure perplexity on them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Validation documents by domain.
    pub validation: Arc<Vec<Vec<Sequence>>>,
    /// Documents per batch.
    pub batch_rows: usize,
    /// Number of columns that the logits are cut to.
    pub vocabulary: i64,
    /// Maximum number of positions whose logits exist at the same time.
    pub chunk: i64,
}

impl Evaluation {
    /// Returns the perplexity of `model` on each domain's documents: `exp` of the mean cross-entropy over all
    /// predicted tokens of the domain (token-weighted). Each document is evaluated on its own. Documents without a
    /// prediction are skipped.
    ///
    /// Batches group documents by length, so there is little padding. The grouping depends only on the documents,
    /// so a repeated evaluation returns the same bits.
    ///
    /// Calls `between` before each batch with the number of finished documents and the number of all documents,
    /// over all domains. If `between` returns true, the evaluation stops and returns `None`.
    ///
    /// # Errors
    /// If a token id is not below the vocabulary size, or if libtorch fails.
    pub fn perplexities(
        &self,
        model: &Model,
        between: &dyn Fn(u64, u64) -> bool,
    ) -> Result<Option<Vec<f64>>, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let head = model.head_for_products()?;
        let hidden = |_: &[&Sequence], tokens: &Tensor| -> Result<_, EngineError> {
            let hidden = model.hidden(tokens, None)?;
            Ok(Some(hidden.f_flatten(0, -2)?))
        };
        self.perplexities_by(&head, between, hidden)
    }

    /// Works like [`Self::perplexities`], given only the model's LM head `[vocab_size, hidden_size]`.
    /// `hidden` returns the hidden states `[rows * time, hidden_size]` of a batch, given its documents and their ids
    /// `[rows, time]`. If it returns `None`, so does the evaluation.
    ///
    /// # Errors
    /// As for [`Self::perplexities`], or if `hidden` fails.
    pub fn perplexities_by<E: From<EngineError>>(
        &self,
        head: &Tensor,
        between: &dyn Fn(u64, u64) -> bool,
        mut hidden: impl FnMut(&[&Sequence], &Tensor) -> Result<Option<Tensor>, E>,
    ) -> Result<Option<Vec<f64>>, E> {
        let _no_grad = tch::no_grad_guard();
        let has_predictions = |document: &&Sequence| document.tokens.len() > 1;
        let all = self.validation.iter().flatten();
        let all = all.filter(has_predictions).count() as u64;
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
                let batch = batch_tensors(rows, self.vocabulary, head.device())?;
                let Some(hidden) = hidden(rows, &batch.tokens)? else {
                    return Ok(None);
                };
                let (sum, count) = cross_entropy_sum(
                    &HeadInput::new(&hidden, head),
                    &batch.labels,
                    self.vocabulary,
                    self.chunk,
                )
                .map_err(EngineError::from)?;
                total += sum;
                predictions += count;
            }
            perplexities.push((total / predictions as f64).exp());
        }
        Ok(Some(perplexities))
    }
}
