//! What can be seen from outside while a run goes on.
//!
//! [`metrics`] declares every metric once: name, unit, labels, help. [`Recorder`] gathers them and renders the page that Prometheus
//! scrapes; a [`Keeper`] looks after it, and writes the page to a file where it is asked to. [`Board`] is where workers say what they
//! do, so that health and busy times can be read without asking a busy thread. [`serve`] answers `/metrics`, `/livez` and `/readyz`.

mod board;
mod keeper;
mod machine;
pub mod metrics;
mod queue;
mod recorder;
mod samples;
mod server;

pub use board::{Board, Totals, Worker};
pub use keeper::{KEEP_EVERY, KeepError, Keeper};
pub use queue::{Queue, Queues};
pub use recorder::{Recorder, RecorderError, seconds_since_1970};
pub use server::{ServeError, Server, serve};
