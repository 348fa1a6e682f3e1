//! Launches the losses of a chunk of positions.

use std::mem::{offset_of, size_of};

use ddk_kernel::{Divergence, Loss, Values};

use crate::launch::{Argument, Launch, threads_for};

/// What a kernel gets of a loss: `Loss` in loss.cu.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Constants {
    weight: f64,
    temperature: f64,
    factor: f64,
    parameter: f64,
    teacher_ce: i32,
}

// The kernels write the `Values` of loss.cu.
const _: () = assert!(
    offset_of!(Values, ce) == 0
        && offset_of!(Values, divergence) == 8
        && offset_of!(Values, teacher_ce) == 16
        && size_of::<Values>() == 24
);

/// Addresses of the logits and labels of a chunk of positions, as in [`ddk_kernel::Chunk`].
#[derive(Debug, Clone, Copy)]
pub struct Chunk {
    /// `[positions x columns]`; the gradient overwrites it.
    pub student: *mut f32,
    /// Same shape.
    pub teacher: Option<*const f32>,
    /// `[positions]`, each less than `columns`; negative if the position is not scored.
    pub labels: *const i64,
    /// `[positions]`.
    pub scales: *const f32,
    /// `[positions]`.
    pub values: *mut Values,
    /// Number of positions.
    pub positions: u32,
    /// Number of columns.
    pub columns: i32,
    /// Whether to compute the teacher's cross-entropy.
    pub teacher_ce: bool,
}

/// Returns the launch that computes the same as [`ddk_kernel::losses`]: a block for each position.
pub fn losses(chunk: &Chunk, loss: &Loss) -> Launch {
    let divergence = loss
        .divergence
        .filter(|_| chunk.teacher.is_some() && loss.weight != 0.0);
    let (kernel, parameter) = match divergence {
        None => ("ddk_cross_entropy", 0.0),
        Some(Divergence::ForwardKl) => ("ddk_forward_kl", 0.0),
        Some(Divergence::ReverseKl) => ("ddk_reverse_kl", 0.0),
        Some(Divergence::Jsd { beta }) => ("ddk_jsd", beta),
        Some(Divergence::SkewKl { skew }) => ("ddk_skew_kl", skew),
        Some(Divergence::SkewReverseKl { skew }) => ("ddk_skew_reverse_kl", skew),
        Some(Divergence::TotalVariation) => ("ddk_total_variation", 0.0),
    };
    let constants = Constants {
        weight: loss.weight,
        temperature: loss.temperature,
        factor: loss.factor,
        parameter,
        teacher_ce: i32::from(chunk.teacher_ce),
    };
    Launch {
        kernel: kernel.to_owned(),
        blocks: chunk.positions,
        threads: threads_for(chunk.columns.unsigned_abs() as usize),
        arguments: vec![
            chunk.student.into(),
            Argument::or_null(chunk.teacher),
            chunk.labels.into(),
            chunk.scales.into(),
            chunk.values.into(),
            Argument::Int(chunk.columns),
            Argument::Loss(constants),
        ],
    }
}
