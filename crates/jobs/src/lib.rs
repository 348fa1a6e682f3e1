//! The jobs of DDK: training runs and everything around them.
//!
//! A job takes its arguments ([`args`]) and the process's signals ([`signals::Signals`]). It works in the folders
//! that its settings name, and reports progress on standard error.
//!
//! ```
//! use ddk_jobs::{args::ConfigArgs, config};
//!
//! let set = vec!["method=ddk".to_owned(), "optimizer.lr=1e-4".to_owned()];
//! let loaded = config::load(&ConfigArgs { files: Vec::new(), set })?;
//! assert_eq!(loaded.settings.optimizer.lr, 1e-4);
//! assert_eq!(loaded.origins.of("mixture.policy"), "method ddk");
//! # Ok::<(), anyhow::Error>(())
//! ```

pub mod args;
pub mod bench;
pub mod chat;
pub mod check;
pub mod checkpoints;
pub mod compare;
pub mod config;
mod control;
pub mod demo;
mod demo_sources;
pub mod display;
pub mod eval;
pub mod export;
pub mod faults;
mod findings;
mod gpus;
pub mod hint;
pub mod hub;
pub mod label;
mod local;
pub mod output;
pub mod phase;
pub mod planned;
pub mod prepare;
pub mod pretrain;
mod printer;
pub mod progress;
mod ranks;
pub mod report;
pub mod shrink;
pub mod signals;
mod sources;
pub mod suited;
mod systemd;

pub mod train;
mod wiring;
