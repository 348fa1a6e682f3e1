//! Tests of the whole pipeline with fake models that hash what they see. No test waits on a clock.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod commands;
mod fakes;
mod faults;
mod lag;
mod order;
mod patience;
mod policies;
mod ranks;
mod ranks_commands;
mod ranks_faults;
mod resume;
