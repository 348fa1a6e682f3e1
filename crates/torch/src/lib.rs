//! The layer between DDK and libtorch: devices ([`parse_device`], [`to_device`]), the thread and device of a worker
//! ([`ComputeContext`]), the allocator ([`keep_freed_memory`]), the numbers of a tensor as a slice
//! ([`as_slice_mut`]), operations with their own backward pass ([`attach`]), the kernels that MKL uses
//! ([`mkl_kernels`]), the CUDA kernels of DDK ([`launch`]), and errors by cause ([`TorchError`]).
//!
//! ```
//! assert_eq!(ddk_torch::parse_device("cpu").unwrap(), tch::Device::Cpu);
//! assert!(ddk_torch::parse_device("gpu").is_err());
//! ```

mod allocator;
mod context;
mod determinism;
mod device;
mod dispatch;
mod error;
mod kernels;
mod mkl;
mod node;
mod numbers;
mod operations;
mod path;
mod stream;

pub use allocator::{give_freed_memory_back, keep_freed_memory};
pub use context::{ComputeContext, TimeSlice, threads};
pub use determinism::{VERSION, make_deterministic, prepare_cublas};
pub use device::{DeviceError, gpu_uuid, parse_device, test_device, to_device};
pub use error::TorchError;
pub use kernels::{are_near, has_kernels, launch, with_kernels};
pub use mkl::mkl_kernels;
pub use node::{attach, needs_gradient};
pub use numbers::{are_apart, as_slice, as_slice_mut};
pub use operations::{AdamWOptions, flash_attention_of_sequences, fused_adamw};
pub use path::{TILE, on_gpu_path, padded, takes_gpu_path};
pub use stream::{current_stream, synchronize};
