//! What lies between DDK and libtorch: devices ([`parse_device`], [`upload`]), the thread of a lane ([`Lane`]), the
//! allocator ([`keep_freed_memory`]), the numbers of a tensor as a slice ([`numbers_mut`]), the kernels that MKL uses
//! ([`mkl_kernels`]), and errors by cause ([`TorchError`]).
//!
//! ```
//! assert_eq!(ddk_torch::parse_device("cuda:1").unwrap(), tch::Device::Cuda(1));
//! assert!(ddk_torch::parse_device("gpu").is_err());
//! ```

mod allocator;
mod determinism;
mod device;
mod dispatch;
mod error;
mod lane;
mod mkl;
mod numbers;
mod operations;
mod path;
mod stream;

pub use allocator::{give_freed_memory_back, keep_freed_memory};
pub use determinism::{VERSION, make_deterministic, prepare_cublas};
pub use device::{DeviceError, gpu_uuid, parse_device, test_device, upload};
pub use error::TorchError;
pub use lane::{Lane, Turns};
pub use mkl::mkl_kernels;
pub use numbers::{are_apart, numbers, numbers_mut};
pub use operations::{FusedAdamW, flash_attention_of_sequences, fused_adamw};
pub use path::{TILE, on_gpu_path, padded, takes_gpu_path};
pub use stream::finish;
