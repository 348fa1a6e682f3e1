//! CUDA kernels: the loss of a chunk of positions, and what a layer does between its matmuls.
//!
//! Each kernel is CUDA C++ in `kernels/`, with the formulas of `ddk-kernel`, which specifies it. NVRTC compiles it for
//! an architecture ([`Nvrtc::compile`]), and needs no GPU for that. The same file also compiles as C++. It then runs on
//! the CPU, with one thread for each thread of a block. The tests compare these twins with `ddk-kernel` and with golden
//! values.
//!
//! A [`Launch`] is a kernel with its grid and its arguments, as CUDA's driver expects them. [`Kernels`] compiles, loads
//! and launches the kernels through the driver ([`Driver`]). Both libraries are opened at run time, and nothing is
//! linked. The tests launch the twins through a stand-in for the driver.

mod driver;
mod error;
mod kernels;
mod launch;
mod layers;
mod loss;
mod nvrtc;
mod source;
mod twin;

pub use driver::{Context, Driver, Module};
pub use error::CudaError;
pub use kernels::Kernels;
pub use launch::{Argument, Launch};
pub use layers::{Dtype, Norm, NormBackward, Rotation, silu_mul, silu_mul_backward};
pub use loss::{Chunk, losses};
pub use nvrtc::{Compiled, Nvrtc};
pub use source::Source;
pub use twin::{Twin, compile_cpp};
