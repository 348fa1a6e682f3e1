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
    filters: Option<FilterPairs>,
}

/// TED's filters: the number of layer pairs, and whether the first stage has already trained the filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FilterPairs {
    pairs: u64,
    learned: bool,
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
            filters: None,
        }
    }

    /// Adds TED's filters between the two models, if there are any.
    pub fn with_filters(self, filters: Option<&Filters>) -> Self {
        let filters = filters.map(|filters| FilterPairs {
            pairs: filters.pairs.len() as u64,
            learned: filters.learned.is_some(),
        });
        Self { filters, ..self }
    }

    /// Operations to label `rows` with the teacher: one forward pass with the LM head.
    pub fn teacher(&self, rows: &[&Sequence]) -> f64 {
        self.teacher_of(rows.iter().flat_map(lengths))
    }

    /// Operations to train the student on `rows`: a forward and a backward pass.
    pub fn student(&self, rows: &[&Sequence]) -> f64 {
        self.student_of(rows.iter().flat_map(lengths))
    }

    /// Like [`Self::student`], for texts of these lengths.
    pub fn student_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        let positions: u64 = lengths.clone().sum();
        let (own, of_teacher) = (self.student.width(), self.teacher.width());
        let forward = self.student.hidden(lengths);
        let times = if self.recompute { 4.0 } else { 3.0 };
        let learning = times * forward + 3.0 * self.student.head(positions, self.vocabulary);
        match self.filters {
            None => learning,
            // The student's filters run forward and backward with it.
            Some(FilterPairs {
                pairs,
                learned: true,
            }) => learning + (positions * pairs * 6 * own * of_teacher) as f64,
            // Both models are frozen: the student runs forward. Each filter runs forward and computes its own
            // gradient. Behind it, the teacher's LM head runs forward and passes the gradient back to the filter.
            Some(FilterPairs { pairs, .. }) => {
                forward
                    + (positions * pairs * 4 * (own + of_teacher) * of_teacher) as f64
                    + 4.0 * pairs as f64 * self.teacher.head(positions, self.vocabulary)
            }
        }
    }

    /// Like [`Self::teacher`], for texts of these lengths.
    pub fn teacher_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        match self.filters {
            None => forward(&self.teacher, lengths, self.vocabulary),
            Some(FilterPairs {
                pairs,
                learned: true,
            }) => {
                let positions: u64 = lengths.clone().sum();
                let filters = positions * pairs * 2 * self.teacher.width().pow(2);
                forward(&self.teacher, lengths, self.vocabulary) + filters as f64
            }
            // The first stage does not train on the teacher's logits.
            Some(_) => self.teacher.hidden(lengths),
        }
    }

    /// Operations to measure the student's perplexity on all documents once.
    pub fn student_evaluation(&self, domains: &[Vec<Sequence>]) -> f64 {
        self.student_evaluation_of(scored(domains))
    }

    /// Like [`Self::student_evaluation`], for documents of these lengths.
    pub fn student_evaluation_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        forward(&self.student, lengths, self.vocabulary)
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
    let lengths = domains
        .iter()
        .flatten()
        .map(|document| document.tokens.len() as u64);
    lengths.filter(|&length| length > 1)
}
