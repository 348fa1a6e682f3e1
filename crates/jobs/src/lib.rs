//! What `ddk` does: training runs and everything around them.
//!
//! A job takes its arguments ([`args`]) and the process's [`signals::Signals`], works in the folders that its settings
//! name, and reports progress on standard error.

pub mod args;
pub mod bench;
pub mod check;
pub mod checkpoints;
pub mod compare;
pub mod config;
mod control;
pub mod demo;
mod demo_sources;
pub mod eval;
pub mod export;
pub mod faults;
mod findings;
mod gpus;
pub mod hint;
mod objective;
pub mod output;
pub mod phase;
pub mod prepare;
pub mod pretrain;
pub mod progress;
pub mod report;
pub mod signals;
mod systemd;
pub mod train;
mod wiring;
