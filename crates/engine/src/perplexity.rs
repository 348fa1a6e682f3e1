//! Perplexity of a model on validation documents.

use ddk_model::Model;
use ddk_objective::{HeadInput, cross_entropy_sum};
use ddk_torch::TorchError;

use crate::{
    EngineError,
    batch::{Sequence, batch_tensors},
};

/// A validation document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// For each token whether its prediction is left out; empty where none is.
    pub skipped: Vec<bool>,
}

impl Document {
    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            tokens: &self.tokens,
            parts: &[],
            skipped: &self.skipped,
        }
    }

    /// Tokens that are predicted.
    pub fn predictions(&self) -> usize {
        let skipped = self.skipped.iter().skip(1).filter(|skipped| **skipped);
        self.tokens.len().saturating_sub(1) - skipped.count()
    }
}

impl From<Vec<u32>> for Document {
    fn from(tokens: Vec<u32>) -> Self {
        Self {
            tokens,
            skipped: Vec::new(),
        }
    }
}

/// Perplexity of `model` on each domain's documents: `exp` of the mean cross-entropy over all predicted tokens of the
/// domain (token-weighted), each document on its own.
///
/// Documents are put into batches of `batch_rows` by length, so that padding is rare; the grouping depends on the
/// documents alone, so that an evaluation made again gives the same bits. Documents without a prediction are left out.
///
/// `between` is called before each batch with the documents done and those there are, of all domains
/// together; where it says true, the evaluation is cut off and `None` returned.
pub fn domain_perplexities(
    model: &Model,
    domains: &[Vec<Document>],
    batch_rows: usize,
    vocabulary: i64,
    chunk: i64,
    between: &dyn Fn(u64, u64) -> bool,
) -> Result<Option<Vec<f64>>, EngineError> {
    let _no_grad = tch::no_grad_guard();
    let head = model.head_for_products()?;
    let has_predictions = |document: &&Document| document.tokens.len() > 1;
    let all = domains.iter().flatten().filter(has_predictions).count() as u64;
    let mut done = 0;
    let mut perplexities = Vec::with_capacity(domains.len());
    for documents in domains {
        let mut by_length: Vec<Sequence<'_>> = documents
            .iter()
            .filter(has_predictions)
            .map(Document::sequence)
            .collect();
        by_length.sort_by_key(|document| std::cmp::Reverse(document.tokens.len()));
        let (mut total, mut predictions) = (0.0, 0);
        for rows in by_length.chunks(batch_rows.max(1)) {
            if between(done, all) {
                return Ok(None);
            }
            done += rows.len() as u64;
            let batch = batch_tensors(rows, vocabulary, model.device())?;
            let hidden = model.hidden(&batch.tokens, None)?;
            let width = hidden.size().last().copied().unwrap_or(0);
            let hidden = hidden.f_reshape([-1, width]).map_err(TorchError::from)?;
            let (sum, count) = cross_entropy_sum(
                &HeadInput::new(&hidden, &head),
                &batch.labels,
                vocabulary,
                chunk,
            )?;
            total += sum;
            predictions += count;
        }
        perplexities.push((total / predictions as f64).exp());
    }
    Ok(Some(perplexities))
}
