//! Runs the kernels on the CPU, and launches them without a GPU.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod compile;
mod driver;
mod stand_in;
mod twin;
