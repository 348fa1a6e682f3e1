//! CPU kernels in fp32 that are faster than chains of libtorch operations: the loss of a chunk of positions
//! ([`losses`]), the optimizer update ([`adamw`]), and what a layer does between its matmuls ([`rms_norm`],
//! [`rotate`], [`silu_mul`]), forward and backward.
//!
//! A chain of tensor operations reads and writes all logits at every step. These kernels finish a row of logits
//! while it is in the cache, and replace it with its gradient. Sums are in f64; exponentials are within 1e-7.
//!
//! Rows do not depend on each other, so values and gradients have the same bits for any number of threads. They
//! also have the same bits on every processor: operations round as IEEE 754 specifies, and the number of partial
//! sums is fixed.
//!
//! ```
//! use ddk_kernel::{Chunk, Loss, Values};
//!
//! let (mut logits, mut values) = ([0.0_f32; 4], [Values::default()]);
//! let chunk = Chunk {
//!     student: &mut logits,
//!     teacher: None,
//!     labels: &[2],
//!     scales: &[1.0],
//!     teacher_ce: false,
//! };
//! let loss = Loss { divergence: None, weight: 0.0, temperature: 1.0, factor: 1.0 };
//! ddk_kernel::losses(chunk, &loss, 1, &mut values);
//! // Equal logits: the loss is ln 4, and the gradient is the softmax minus the label.
//! assert!((values[0].ce - 4_f64.ln()).abs() < 1e-6);
//! assert!((logits[2] + 0.75).abs() < 1e-6);
//! ```

mod adamw;
mod divergence;
mod gradients;
mod layers;
mod math;
mod processor;
mod row;
mod sum;
mod team;

pub use adamw::{AdamWStep, adamw};
pub use divergence::Divergence;
pub use gradients::{NormInputs, rms_norm_backward, rotate_backward, silu_mul_backward};
pub use layers::{add_rms_norm, rms_norm, rotate, silu_mul};
pub use sum::sum_of_squares;

use processor::for_this_processor;
use team::in_parts;

/// The loss at each position: `ce + weight * factor * D`, with both softmaxes of D at `temperature`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// The divergence D. `None`: cross-entropy alone.
    pub divergence: Option<Divergence>,
    /// Weight of the divergence; 0 turns it off.
    pub weight: f64,
    /// Greater than 0.
    pub temperature: f64,
    /// 1, or the square of the temperature.
    pub factor: f64,
}

/// Values of a position in nats; all 0 if it is not scored.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub struct Values {
    /// The student's cross-entropy of the label.
    pub ce: f64,
    /// `factor * D`; 0 without a teacher or at weight 0.
    pub divergence: f64,
    /// The teacher's own cross-entropy of the label, if requested; otherwise it may be 0.
    pub teacher_ce: f64,
}

/// Logits and labels of a chunk of positions.
pub struct Chunk<'a> {
    /// `[positions x vocabulary]`: logits, overwritten with the gradient of `scale (ce + weight * factor * D)`.
    pub student: &'a mut [f32],
    /// Same shape as `student`; unchanged.
    pub teacher: Option<&'a [f32]>,
    /// The next token of each position, less than the vocabulary size. Negative if the position is not scored; its
    /// values and gradient are then 0.
    pub labels: &'a [i64],
    /// Scale factor for each position's gradient.
    pub scales: &'a [f32],
    /// Whether to compute the teacher's cross-entropy.
    pub teacher_ce: bool,
}

/// Writes each position's values to `values` and overwrites the student's logits with the gradient, on `threads`
/// threads.
///
/// # Panics
/// If the lengths do not match, or if a label is past the vocabulary.
pub fn losses(chunk: Chunk<'_>, loss: &Loss, threads: usize, values: &mut [Values]) {
    let count = values.len();
    if count == 0 {
        return;
    }
    let columns = chunk.student.len() / count;
    let fits = |logits: &[f32]| logits.len() == count * columns;
    assert!(fits(chunk.student), "the student's logits");
    assert!(chunk.teacher.is_none_or(fits));
    assert_eq!((chunk.labels.len(), chunk.scales.len()), (count, count));
    // Every part has the same number of rows, except that the last may have fewer.
    let rows = count.div_ceil(threads.clamp(1, count));
    let mut teachers = chunk.teacher.map(|teacher| teacher.chunks(rows * columns));
    let parts = chunk
        .student
        .chunks_mut(rows * columns)
        .zip(chunk.labels.chunks(rows))
        .zip(chunk.scales.chunks(rows))
        .zip(values.chunks_mut(rows))
        .map(|(((student, labels), scales), values)| {
            let part = Chunk {
                student,
                teacher: teachers.as_mut().and_then(Iterator::next),
                labels,
                scales,
                teacher_ce: chunk.teacher_ce,
            };
            (part, values)
        });
    in_parts(parts, |(part, values)| {
        some_rows(part, columns, loss, values);
    });
}

for_this_processor! {
    fn some_rows(chunk: Chunk<'_>, columns: usize, loss: &Loss, values: &mut [Values]) {
        let mut teachers = chunk.teacher.map(|teacher| teacher.chunks_exact(columns));
        let students = chunk.student.chunks_exact_mut(columns);
        let rows = students.zip(chunk.labels).zip(chunk.scales).zip(values);
        for (((student, label), scale), values) in rows {
            let teacher = teachers.as_mut().and_then(Iterator::next);
            *values = match usize::try_from(*label) {
                Ok(label) => {
                    assert!(label < columns, "a label past the vocabulary");
                    row::position(student, teacher, label, *scale, chunk.teacher_ce, loss)
                }
                Err(_) => {
                    student.fill(0.0);
                    Values::default()
                }
            };
        }
    }
}
