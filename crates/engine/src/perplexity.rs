//! Perplexity of a model on validation documents.

use ddk_corpus::Sequence;
use ddk_model::Model;
use ddk_objective::{HeadInput, cross_entropy_sum};
use ddk_torch::TorchError;

use crate::{EngineError, batch::batch_tensors};

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
    domains: &[Vec<Sequence>],
    batch_rows: usize,
    vocabulary: i64,
    chunk: i64,
    between: &dyn Fn(u64, u64) -> bool,
) -> Result<Option<Vec<f64>>, EngineError> {
    let _no_grad = tch::no_grad_guard();
    let head = model.head_for_products()?;
    let has_predictions = |document: &&Sequence| document.tokens.len() > 1;
    let all = domains.iter().flatten().filter(has_predictions).count() as u64;
    let mut done = 0;
    let mut perplexities = Vec::with_capacity(domains.len());
    for documents in domains {
        let mut by_length: Vec<&Sequence> = documents.iter().filter(has_predictions).collect();
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
