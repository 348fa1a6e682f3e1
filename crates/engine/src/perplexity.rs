//! Measures the perplexity of a model on validation documents.

use std::sync::Arc;

use ddk_corpus::Sequence;
use ddk_distributed::Group;
use ddk_model::Model;
use ddk_objective::{HeadInput, cross_entropy_sum};
use tch::Tensor;

use crate::{EngineError, batch::batch_tensors, sharding::exchange};

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
    /// The processes that share the documents, if there are several. All of them evaluate together, and all get the
    /// same result.
    pub group: Option<Arc<Group>>,
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
    /// over all domains. If `between` returns true on one process, the evaluation returns `None` on all.
    ///
    /// Several processes deal the batches out by number, and add the sums of all batches in order. So their number
    /// changes no bit.
    ///
    /// # Errors
    /// If a token id is not below the vocabulary size, or if libtorch or the exchange fails.
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
        let batches = self.batches();
        let count = |(_, rows): &(usize, Vec<&Sequence>)| rows.len() as u64;
        let all = batches.iter().map(count).sum();
        let (rank, size) = match &self.group {
            None => (0, 1),
            Some(group) => (group.rank(), group.size()),
        };
        // Whether this process was not cut off, and the sum and the predictions of each of its batches.
        let (mut own, mut done) = (vec![1.0], 0);
        for (number, (_, rows)) in batches.iter().enumerate() {
            let before = done;
            done += rows.len() as u64;
            if number % size != rank {
                continue;
            }
            let hidden = if between(before, all) {
                None
            } else {
                let batch = batch_tensors(rows, self.vocabulary, head.device())?;
                hidden(rows, &batch.tokens)?.map(|hidden| (hidden, batch))
            };
            let Some((hidden, batch)) = hidden else {
                own[0] = 0.0;
                break;
            };
            let input = HeadInput::new(&hidden, head);
            let sums = cross_entropy_sum(&input, &batch.labels, self.vocabulary, self.chunk);
            let (sum, predictions) = sums.map_err(EngineError::from)?;
            own.extend([sum, predictions as f64]);
        }
        let of_rank = match &self.group {
            None => vec![own],
            Some(group) => exchange(group, &own)?,
        };
        let mut of_rank: Vec<_> = of_rank.into_iter().map(Vec::into_iter).collect();
        if of_rank.iter_mut().any(|sums| sums.next() != Some(1.0)) {
            return Ok(None);
        }
        let mut totals = vec![(0.0, 0.0); self.validation.len()];
        for (number, (domain, _)) in batches.iter().enumerate() {
            let sums = &mut of_rank[number % size];
            let (total, predictions) = &mut totals[*domain];
            *total += sums.next().unwrap_or(f64::NAN);
            *predictions += sums.next().unwrap_or(f64::NAN);
        }
        let perplexity = |(total, predictions): (f64, f64)| (total / predictions).exp();
        Ok(Some(totals.into_iter().map(perplexity).collect()))
    }

    /// The documents with predictions in batches, with the domain of each batch.
    pub(crate) fn batches(&self) -> Vec<(usize, Vec<&Sequence>)> {
        let mut batches = Vec::new();
        for (domain, documents) in self.validation.iter().enumerate() {
            let documents = documents.iter();
            let mut documents: Vec<&Sequence> = documents
                .filter(|document| document.tokens.len() > 1)
                .collect();
            documents.sort_by_key(|document| std::cmp::Reverse(document.tokens.len()));
            let of_domain = documents.chunks(self.batch_rows.max(1));
            batches.extend(of_domain.map(|rows| (domain, rows.to_vec())));
        }
        batches
    }
}
