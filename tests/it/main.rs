//! Whole-program tests: they start `ddk` as a user does and check what it leaves behind.
//!
//! A test with `needs_WORD` in its path needs something that not every machine has; `make test SKIP=WORD` leaves it
//! out (docs/testing.md).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod bad_input;
mod before_a_run;
mod best;
mod chat;
mod checkpoints;
mod commands;
mod compare;
mod control;
mod corpora;
mod demo_text;
mod deploy;
mod device;
mod extended;
mod faults;
mod formats;
mod hub;
mod init;
mod interrupted;
mod lanes;
mod mixtures;
mod model_folders;
mod monitoring;
mod needs_text;
mod objectives;
mod pages;
mod parallel;
mod phases;
mod pretrain;
mod schedules;
mod served;
mod service;
mod shell;
mod signals;
mod texts;
mod tools;
mod training;
mod world;
