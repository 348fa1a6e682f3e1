//! What the outside sees of a run: metrics, health, the live page and its API.
//!
//! [`metrics`] declares every metric once: name, unit, labels, help, panel. [`Recorder`] gathers them and renders the
//! page that Prometheus scrapes. A [`Keeper`] maintains the recorder and can write the page to a file. [`Activity`]
//! knows what the process is doing and when the run will end. Workers report their state to a [`Board`], so health and
//! busy times can be read without asking a busy thread. From these and a [`ddk_run::RunView`], [`serve`] answers over
//! HTTP: the pages of `dashboards/page/`, the API of [`api`], `/metrics`, `/livez` and `/readyz`. `access.rs` decides
//! who has access.
//!
//! ```
//! use std::time::Duration;
//!
//! let board = ddk_telemetry::Board::new(Duration::from_secs(900));
//! let worker = board.worker("student");
//! worker.computing();
//! assert!(board.unhealthy().is_empty());
//! ```

mod access;
mod activity;
pub mod api;
mod board;
mod chart;
mod clock;
mod estimate;
mod files;
mod gauge;
mod keeper;
mod machine;
pub mod metrics;
mod pages;
mod places;
mod progress;
mod queue;
mod recorder;
mod samples;
mod server;
mod site;
mod timeline;

pub use activity::{Activity, TRAINING};
pub use api::RankStatus;
pub use board::{Board, Line, ShownQueue, Worker};
pub use clock::Clock;
pub use estimate::Course;
pub use keeper::{KEEP_EVERY, KeepError, Keeper};
pub use machine::{Gpu, peak_resident_bytes};
pub use progress::{Meter, Progress};
pub use queue::{Queue, Queues};
pub use recorder::{Recorder, RecorderError};
pub use server::{ServeError, Server, serve};
pub use site::{Limits, Site};
