//! What a run computes: operations of the matrix products, by teacher, student and evaluation.

use ddk_model::{Flops, ModelConfig};

use crate::{Document, Sequence};

/// Counts a run's floating-point operations from the models' shapes and the tokens that go through them, padding left out.
///
/// A backward is twice its forward: the gradient of the inputs, and that of the weights. The teacher's output matrix is applied
/// beside the student, and counted as the teacher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlopCounter {
    teacher: Flops,
    student: Flops,
    /// Columns of the logits that are computed.
    vocabulary: u64,
    /// Whether the student's layers go forward once more in the backward.
    recompute: bool,
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
        }
    }

    /// The teacher labels rows: one forward with the output matrix.
    pub fn teacher(&self, rows: &[Sequence<'_>]) -> f64 {
        forward(
            &self.teacher,
            rows.iter().flat_map(lengths),
            self.vocabulary,
        )
    }

    /// The student learns from rows: forward and backward.
    pub fn student(&self, rows: &[Sequence<'_>]) -> f64 {
        self.student_of(rows.iter().flat_map(lengths))
    }

    /// As [`Self::student`], of texts of these lengths.
    pub fn student_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        let positions = lengths.clone().sum();
        let times = if self.recompute { 4.0 } else { 3.0 };
        times * self.student.hidden(lengths) + 3.0 * self.student.head(positions, self.vocabulary)
    }

    /// As [`Self::teacher`], of texts of these lengths.
    pub fn teacher_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        forward(&self.teacher, lengths, self.vocabulary)
    }

    /// The student's perplexities on all documents, once.
    pub fn student_evaluation(&self, domains: &[Vec<Document>]) -> f64 {
        self.student_evaluation_of(scored(domains))
    }

    /// As [`Self::student_evaluation`], of documents of these lengths.
    pub fn student_evaluation_of(&self, lengths: impl Iterator<Item = u64> + Clone) -> f64 {
        forward(&self.student, lengths, self.vocabulary)
    }

    /// The teacher's perplexities on all documents, once.
    pub fn teacher_evaluation(&self, domains: &[Vec<Document>]) -> f64 {
        forward(&self.teacher, scored(domains), self.vocabulary)
    }
}

fn forward(model: &Flops, lengths: impl Iterator<Item = u64> + Clone, vocabulary: u64) -> f64 {
    model.hidden(lengths.clone()) + model.head(lengths.sum(), vocabulary)
}

/// Lengths of the texts in a row that see nothing of each other.
fn lengths<'a>(row: &Sequence<'a>) -> impl Iterator<Item = u64> + Clone + use<'a> {
    let whole = row.parts.is_empty().then_some(row.tokens.len() as u64);
    let parts = row.parts.iter().map(|&length| u64::from(length));
    whole.into_iter().chain(parts)
}

/// Lengths of the documents that have something to predict.
fn scored(domains: &[Vec<Document>]) -> impl Iterator<Item = u64> + Clone {
    let lengths = domains
        .iter()
        .flatten()
        .map(|document| document.tokens.len() as u64);
    lengths.filter(|&length| length > 1)
}
