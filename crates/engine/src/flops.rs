//! Counts a run's floating-point operations in matmuls, by teacher, student and evaluation.

use ddk_corpus::Sequence;
use ddk_model::{Flops, ModelConfig};

use crate::Filters;

/// Counts a run's floating-point operations from the shapes of the models and the lengths of the sequences, without
/// padding.
///
/// A backward pass counts as two forward passes: one for the gradient of the inputs, one for that of the weights.
/// The student's worker applies the teacher's LM head, but its operations count as the teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlopCounter {
    teacher: Flops,
    student: Flops,
    /// Number of logit columns that are computed.
    vocabulary: u64,
    /// Whether the backward pass repeats the forward pass of the student's layers.
    recompute: bool,
    /// TED's layer pairs.
    pairs: u64,
    /// Whether the run is TED's first stage, which trains the filters instead of the student.
    learns_filters: bool,
}

impl FlopCounter {
    /// Creates a counter. Both models' logits are cut to `vocabulary` columns.
    pub fn new(
        teacher: &ModelConfig,
        student: &ModelConfig,
        vocabulary: u64,
        recompute: bool,
    ) -> Self {
        Self {
            teacher: teacher.flops(),
            student: student.flops(),
            vocabulary,
            recompute,
            pairs: 0,
            learns_filters: false,
        }
    }

    /// Adds TED's filters between the two models, if there are any.
    pub fn with_filters(self, filters: Option<&Filters>) -> Self {
        Self {
            pairs: filters.map_or(0, |filters| filters.pairs.len() as u64),
            learns_filters: filters.is_some_and(|filters| filters.learned.is_none()),
            ..self
        }
    }

    /// Operations to label `rows` with the teacher: one forward pass with the LM head.
    pub fn teacher(&self, rows: &[&Sequence]) -> f64 {
        let lengths = rows.iter().flat_map(lengths);
        if self.learns_filters {
            // The first stage does not train on the teacher's logits.
            return self.teacher.hidden(lengths);
        }
        let positions: u64 = lengths.clone().sum();
        let filters = positions * self.pairs * 2 * self.teacher.width().pow(2);
        forward(&self.teacher, lengths, self.vocabulary) + filters as f64
    }

    /// Operations of [`Self::teacher`] that the student's worker makes, with a cache too: those of the LM head.
    pub fn teacher_head(&self, positions: u64) -> f64 {
        self.teacher.head(positions, self.vocabulary)
    }

    /// Operations to train the student on `rows`: a forward and a backward pass.
    pub fn student(&self, rows: &[&Sequence]) -> f64 {
        let (lengths, pairs) = (rows.iter().flat_map(lengths), self.pairs);
        let positions: u64 = lengths.clone().sum();
        let (own, of_teacher) = (self.student.width(), self.teacher.width());
        let forward = self.student.hidden(lengths);
        if self.learns_filters {
            // Both models are frozen: the student runs forward. Each filter runs forward and computes its own
            // gradient. Behind it, the teacher's LM head runs forward and passes the gradient back to the filter.
            return forward
                + (positions * pairs * 4 * (own + of_teacher) * of_teacher) as f64
                + 4.0 * pairs as f64 * self.teacher.head(positions, self.vocabulary);
        }
        let times = if self.recompute { 4.0 } else { 3.0 };
        let learning = times * forward + 3.0 * self.student.head(positions, self.vocabulary);
        // The student's filters run forward and backward with it.
        learning + (positions * pairs * 6 * own * of_teacher) as f64
    }

    /// Operations to measure the student's perplexity on all documents once.
    pub fn student_evaluation(&self, domains: &[Vec<Sequence>]) -> f64 {
        forward(&self.student, scored(domains), self.vocabulary)
    }

    /// Operations to measure the teacher's perplexity on all documents once.
    pub fn teacher_evaluation(&self, domains: &[Vec<Sequence>]) -> f64 {
        forward(&self.teacher, scored(domains), self.vocabulary)
    }
}

fn forward(model: &Flops, lengths: impl Iterator<Item = u64> + Clone, vocabulary: u64) -> f64 {
    model.hidden(lengths.clone()) + model.head(lengths.sum(), vocabulary)
}

/// Lengths of the texts in a sequence that do not attend to each other.
fn lengths<'a>(row: &&'a Sequence) -> impl Iterator<Item = u64> + Clone + use<'a> {
    let whole = row.document_lengths.is_empty();
    let whole = whole.then_some(row.tokens.len() as u64);
    let parts = row.document_lengths.iter().map(|&length| u64::from(length));
    whole.into_iter().chain(parts)
}

/// Lengths of the documents that have at least one token to predict.
fn scored(domains: &[Vec<Sequence>]) -> impl Iterator<Item = u64> + Clone {
    let documents = domains.iter().flatten();
    let lengths = documents.map(|document| document.tokens.len() as u64);
    lengths.filter(|&length| length > 1)
}
