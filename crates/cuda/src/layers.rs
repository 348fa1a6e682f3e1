//! Launches what a layer does between its matmuls. Addresses are of contiguous tensors of one dtype.

use std::ffi::c_void;

use crate::launch::{Argument, Launch, blocks_for, threads_for};

/// Rows of a block in the backward pass of a norm: `BLOCK_ROWS` in layers.cu.
const BLOCK_ROWS: usize = 32;
/// Threads of a block in kernels that loop over numbers.
const THREADS: u32 = 256;

/// The dtype of a kernel's tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// fp32.
    F32,
    /// bf16, with arithmetic in fp32.
    Bf16,
}

impl Dtype {
    fn kernel(self, name: &str) -> String {
        let suffix = match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        };
        format!("ddk_{name}_{suffix}")
    }
}

/// A root mean square norm of rows, as [`ddk_kernel::rms_norm`] or [`ddk_kernel::add_rms_norm`].
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// The rows.
    pub x: *const c_void,
    /// Rows to add first, and where to write the sum.
    pub added: Option<[*const c_void; 2]>,
    /// `[width]`.
    pub weight: *const c_void,
    /// The result.
    pub out: *mut c_void,
    /// Number of rows.
    pub rows: u32,
    /// Numbers of a row.
    pub width: i32,
    /// Epsilon.
    pub eps: f32,
}

impl Norm {
    /// Returns the launch: a block for each row.
    pub fn launch(&self, dtype: Dtype) -> Launch {
        Launch {
            kernel: dtype.kernel("rms_norm"),
            blocks: self.rows,
            threads: threads_for(self.width.unsigned_abs() as usize),
            arguments: vec![
                self.x.into(),
                Argument::or_null(self.added.map(|[added, _]| added)),
                self.weight.into(),
                Argument::Int(self.width),
                Argument::Float(self.eps),
                Argument::or_null(self.added.map(|[_, sum]| sum)),
                self.out.into(),
            ],
        }
    }
}

/// The backward pass of a norm, as [`ddk_kernel::rms_norm_backward`].
#[derive(Debug, Clone, Copy)]
pub struct NormBackward {
    /// The rows that were normed.
    pub x: *const c_void,
    /// `[width]`.
    pub weight: *const c_void,
    /// The gradient of the normed rows.
    pub gradient: *const c_void,
    /// Another gradient of the rows, to add.
    pub residual: Option<*const c_void>,
    /// The gradient of the rows.
    pub x_gradient: *mut c_void,
    /// `[width]`: the gradient of the weight.
    pub weight_gradient: *mut c_void,
    /// Working memory: [`NormBackward::sums`] numbers of fp32.
    pub sums: *mut f32,
    /// Number of rows.
    pub rows: i32,
    /// Numbers of a row.
    pub width: i32,
    /// The epsilon of the forward pass.
    pub eps: f32,
}

impl NormBackward {
    /// Numbers of working memory that this many rows of this width need.
    pub fn sums(rows: usize, width: usize) -> usize {
        rows.div_ceil(BLOCK_ROWS) * width
    }

    /// Returns the launches, one after the other: the gradient of the rows with the weight's gradient of every 32 rows,
    /// and the sum of these.
    pub fn launches(&self, dtype: Dtype) -> [Launch; 2] {
        let blocks = self.rows.unsigned_abs().div_ceil(BLOCK_ROWS as u32);
        let width = self.width.unsigned_abs();
        let of_rows = Launch {
            kernel: dtype.kernel("norm_backward"),
            blocks,
            threads: threads_for(width as usize),
            arguments: vec![
                self.x.into(),
                self.weight.into(),
                self.gradient.into(),
                Argument::or_null(self.residual),
                Argument::Int(self.rows),
                Argument::Int(self.width),
                Argument::Float(self.eps),
                self.x_gradient.into(),
                self.sums.into(),
            ],
        };
        let of_weight = Launch {
            kernel: dtype.kernel("norm_weight"),
            blocks: width.div_ceil(THREADS),
            threads: THREADS,
            arguments: vec![
                self.sums.into(),
                Argument::Int(blocks.cast_signed()),
                Argument::Int(self.width),
                self.weight_gradient.into(),
            ],
        };
        [of_rows, of_weight]
    }
}

/// Returns the launch of [`ddk_kernel::silu_mul`]: gate, other factor, and result, of `count` numbers each.
pub fn silu_mul(
    [gate, up]: [*const c_void; 2],
    out: *mut c_void,
    count: usize,
    dtype: Dtype,
) -> Launch {
    Launch {
        kernel: dtype.kernel("silu_mul"),
        blocks: blocks_for(count),
        threads: THREADS,
        arguments: vec![gate.into(), up.into(), Argument::Size(count), out.into()],
    }
}

/// Returns the launch of [`ddk_kernel::silu_mul_backward`]: gate, other factor, gradient; and the gradients of the gate
/// and of the other factor.
pub fn silu_mul_backward(
    [gate, up, gradient]: [*const c_void; 3],
    [gate_gradient, up_gradient]: [*mut c_void; 2],
    count: usize,
    dtype: Dtype,
) -> Launch {
    Launch {
        kernel: dtype.kernel("silu_mul_backward"),
        blocks: blocks_for(count),
        threads: THREADS,
        arguments: vec![
            gate.into(),
            up.into(),
            gradient.into(),
            Argument::Size(count),
            gate_gradient.into(),
            up_gradient.into(),
        ],
    }
}

/// Turns each head of each position, as [`ddk_kernel::rotate`] and [`ddk_kernel::rotate_backward`].
#[derive(Debug, Clone, Copy)]
pub struct Rotation {
    /// `[positions, heads, width]`.
    pub x: *const c_void,
    /// `[time, width]`, which repeats for each sequence.
    pub cos: *const c_void,
    /// Same shape.
    pub sin: *const c_void,
    /// The result. It may be `x`.
    pub out: *mut c_void,
    /// Positions of all sequences.
    pub positions: usize,
    /// Positions of a sequence.
    pub time: i32,
    /// Number of heads.
    pub heads: i32,
    /// Width of a head.
    pub width: i32,
    /// Whether to turn a gradient back.
    pub back: bool,
}

impl Rotation {
    /// Returns the launch.
    pub fn launch(&self, dtype: Dtype) -> Launch {
        let pairs = (self.heads * self.width / 2).unsigned_abs() as usize;
        Launch {
            kernel: dtype.kernel("rotate"),
            blocks: blocks_for(self.positions * pairs),
            threads: THREADS,
            arguments: vec![
                self.x.into(),
                self.cos.into(),
                self.sin.into(),
                Argument::Size(self.positions),
                Argument::Int(self.time),
                Argument::Int(self.heads),
                Argument::Int(self.width),
                Argument::Int(i32::from(self.back)),
                self.out.into(),
            ],
        }
    }
}
