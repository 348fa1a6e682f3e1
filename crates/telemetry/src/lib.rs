//! What can be seen from outside while a run goes on.
//!
//! [`metrics`] declares every metric once: name, help, labels. [`Recorder`] gathers them and renders the page that Prometheus
//! scrapes. [`Board`] is where workers say what they do, so that health and busy times can be read without asking a busy
//! thread. [`serve`] answers `/metrics`, `/livez` and `/readyz`.

mod board;
pub mod metrics;
mod recorder;
mod server;

pub use board::{Board, Totals, Worker};
pub use recorder::{Recorder, RecorderError};
pub use server::{ServeError, Server, serve};
