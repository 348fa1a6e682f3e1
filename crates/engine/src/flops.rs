//! What a run computes: operations of the matrix products, by teacher, student and evaluation.

use ddk_corpus::Sequence;
use ddk_model::{Flops, ModelConfig};

use crate::Filters;

/// Counts a run's floating-point operations from the models' shapes and the tokens that go through them,
/// padding left out.
///
/// A backward is twice its forward: the gradient of the inputs, and that of the weights. The teacher's output
/// matrix is applied beside the student, and counted as the teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlopCounter {
    teacher: Flops,
    student: Flops,
    /// Columns of the logits that are computed.
    vocabulary: u64,
    /// Whether the student's layers go forward once more in the backward.
    recompute: bool,
    filters: Option<FilterPairs>,
}

/// TED's filters: how many pairs of layers have some, and whether they are learned already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FilterPairs {
    pairs: u64,
    learned: bool,
}

impl FlopCounter {
    /// Both logits are cut to `vocabulary` columns.
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

    /// With TED's filters between the two models.
    pub fn with_filters(self, filters: Option<&Filters>) -> Self {
        let filters = filters.map(|filters| FilterPairs {
            pairs: filters.pairs.len() as u64,
            learned: filters.learned.is_some(),
        });
        Self { filters, ..self }
    }

    /// The teacher labels rows: one forward with the output matrix.
    pub fn teacher(&self, rows: &[&Sequence]) -> f64 {
        self.teacher_of(rows.iter().flat_map(lengths))
    }

    /// The student learns from rows: forward and backward.
    pub fn student(&self, rows: &[&Sequence]) -> f64 {
        self.student_of(rows.iter().flat_map(lengths))
    }

    /// As [`Self::student`], of texts of these lengths.
    pub fn student_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        let positions: u64 = lengths.clone().sum();
        let (own, of_teacher) = (self.student.width(), self.teacher.width());
        let forward = self.student.hidden(lengths);
        let times = if self.recompute { 4.0 } else { 3.0 };
        let learning = times * forward + 3.0 * self.student.head(positions, self.vocabulary);
        match self.filters {
            None => learning,
            // The student's filters go forward and backward with it.
            Some(FilterPairs {
                pairs,
                learned: true,
            }) => learning + (positions * pairs * 6 * own * of_teacher) as f64,
            // Both models are frozen: a forward, then each filter, forward and its own gradient, and the
            // teacher's output matrix behind it, forward and back to the filter.
            Some(FilterPairs { pairs, .. }) => {
                forward
                    + (positions * pairs * 4 * (own + of_teacher) * of_teacher) as f64
                    + 4.0 * pairs as f64 * self.teacher.head(positions, self.vocabulary)
            }
        }
    }

    /// As [`Self::teacher`], of texts of these lengths.
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
            // Nothing is learned from its logits yet.
            Some(_) => self.teacher.hidden(lengths),
        }
    }

    /// The student's perplexities on all documents, once.
    pub fn student_evaluation(&self, domains: &[Vec<Sequence>]) -> f64 {
        self.student_evaluation_of(scored(domains))
    }

    /// As [`Self::student_evaluation`], of documents of these lengths.
    pub fn student_evaluation_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        forward(&self.student, lengths, self.vocabulary)
    }

    /// The teacher's perplexities on all documents, once.
    pub fn teacher_evaluation(&self, domains: &[Vec<Sequence>]) -> f64 {
        forward(&self.teacher, scored(domains), self.vocabulary)
    }
}

fn forward(model: &Flops, lengths: impl Iterator<Item = u64> + Clone, vocabulary: u64) -> f64 {
    model.hidden(lengths.clone()) + model.head(lengths.sum(), vocabulary)
}

/// Lengths of the texts in a row that see nothing of each other.
fn lengths<'a>(row: &&'a Sequence) -> impl Iterator<Item = u64> + Clone + use<'a> {
    let whole = row.document_lengths.is_empty();
    let whole = whole.then_some(row.tokens.len() as u64);
    let parts = row.document_lengths.iter().map(|&length| u64::from(length));
    whole.into_iter().chain(parts)
}

/// Lengths of the documents that have something to predict.
fn scored(domains: &[Vec<Sequence>]) -> impl Iterator<Item = u64> + Clone {
    let lengths = domains
        .iter()
        .flatten()
        .map(|document| document.tokens.len() as u64);
    lengths.filter(|&length| length > 1)
}
