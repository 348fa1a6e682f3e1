//! What torchrun gives a Python process, for a Rust process: its place in the world ([`World`]), the key-value store
//! ([`Store`]), and connections with all other processes ([`Group`]).
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use ddk_distributed::{DistributedError, Group, Store, World};
//! use tch::{Device, Kind, Tensor};
//!
//! fn main() -> Result<(), DistributedError> {
//!     // Started by: torchrun --no-python --nproc-per-node 2 ./program
//!     let Some(world) = World::from_env()? else {
//!         return Ok(()); // This process runs alone.
//!     };
//!     let timeout = Duration::from_secs(60);
//!     let store = Store::connect(&world, timeout)?;
//!     let group = Group::connect(&store, &world, "student", Device::Cpu, timeout)?;
//!     let greetings = group.exchange(format!("rank {} is here", world.rank).as_bytes())?;
//!     assert_eq!(greetings.len(), world.size);
//!
//!     // Each rank receives its slice of every rank's gradient, and adds the slices itself. If it adds them by a tree
//!     // that depends only on their positions, the sum has the same bits for any number of processes.
//!     let gradient = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu));
//!     let mut slices = gradient.empty_like();
//!     group.all_to_all(&mut slices, &gradient)?;
//!     let slice = slices.view([world.size as i64, -1]).sum_dim_intlist(0, false, Kind::Float);
//!     // Afterwards, all ranks collect all slices.
//!     let mut sum = gradient.empty_like();
//!     group.all_gather(&mut sum, &slice)
//! }
//! ```
//!
//! # How it works
//! The store is c10d's `TCPStore`, and Gloo connects the processes. `libtorch_cpu.so` contains both, so `cpp/shim.cpp`
//! only wraps them in C. libtorch ships no headers of Gloo; stubs in `cpp/stubs` stand in for them. On GPUs, tensors
//! travel through NCCL, whose functions are looked up by name (untested: no GPU was available).
//!
//! If torchrun's agent does not serve the store, rank 0 does. It should then end last, for example after an
//! [`exchange`](Group::exchange) with all others. As with PyTorch, anyone who can reach the store's port can use the
//! store. Keep the port in a private network.
//!
//! An operation with fewer ranks than it needs does not hang: it returns [`DistributedError::Lost`] when another
//! process ends, and [`DistributedError::TimedOut`] when one stops answering. With more than two ranks, only the first
//! rank to notice may report the timeout. It closes its connections, and the others report that.

mod address;
mod error;
mod group;
mod meeting;
mod nccl;
mod shim;
mod store;
mod world;

pub use error::DistributedError;
pub use group::Group;
pub use store::Store;
pub use world::World;
