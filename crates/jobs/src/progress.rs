//! Progress of long work: meters whose count [`crate::display`] shows.

use std::path::Path;

use ddk_model::{ModelError, Weights, bytes_loaded, bytes_written};
use ddk_telemetry::{Meter, Progress};

pub use crate::display::say;
use crate::display::{self, set_line_seconds};

/// Seconds between lines about work that is not a run's.
const LINE_SECONDS: f64 = 5.0;

/// Guesses of the bytes per second that are hashed and loaded, which count until the first tensor is done.
const HASHED: f64 = 1e9;
const LOADED: f64 = 5e8;

/// Lists weights with their names.
pub(crate) fn list_weights<'a>(weights: impl IntoIterator<Item = (&'a str, f64)>) -> String {
    let weights = weights.into_iter();
    let weights = weights.map(|(name, weight)| format!("{name} {weight:.3}"));
    weights.collect::<Vec<_>>().join(" ")
}

/// Reports the progress of a long job: with a bar on a terminal, otherwise with a line from time to time.
#[derive(Debug)]
pub struct Reporter(());

impl Reporter {
    /// Prints a line every `seconds`, but at least every 5 seconds.
    pub fn new(seconds: f64) -> Self {
        set_line_seconds(seconds);
        Self(())
    }

    /// Begins a phase. `unit`: what is counted, in the plural.
    pub fn meter(&self, phase: &str, unit: &'static str) -> Meter {
        Meter::start(phase, unit)
    }

    /// Shows the progress of a phase, from the first report on.
    pub fn report(&self, _progress: &Progress) {
        display::show();
    }
}

/// Hashes the weights of a model.
///
/// # Errors
/// If the folder holds no weights.
pub fn hash_weights(folder: &Path) -> Result<String, ModelError> {
    Ok(hash_tensors(folder, &Weights::open(folder)?))
}

/// Hashes some weights of a model's folder.
pub fn hash_tensors(folder: &Path, weights: &Weights) -> String {
    let reporter = Reporter::new(LINE_SECONDS);
    let meter = reporter.meter(&format!("hashing {}", folder.display()), "MB");
    let meter = meter.expecting(Some(weights.bytes() as f64 / HASHED));
    let tell = |done, total| reporter.report(&meter.at(done / 1_000_000, total / 1_000_000));
    weights.hash(tell)
}

/// Counts the tensors that this process loads from now on, of about `bytes` in all.
pub(crate) fn loading(bytes: u64) -> Meter {
    counting("loading the models", bytes, bytes_loaded).expecting(Some(bytes as f64 / LOADED))
}

/// Counts the tensors that this process writes from now on, of about `bytes` in all.
pub(crate) fn exporting(bytes: u64) -> Meter {
    counting("exporting the student", bytes, bytes_written)
}

fn counting(phase: &str, bytes: u64, counter: fn() -> u64) -> Meter {
    let before = counter();
    Meter::reading(phase, "MB", move || {
        let done = (counter() - before).min(bytes);
        (done / 1_000_000, bytes / 1_000_000)
    })
}

/// Returns the bytes of a model's tensors on the disk; 0 if they cannot be read.
pub(crate) fn model_bytes(folder: &Path) -> u64 {
    Weights::open(folder).map_or(0, |weights| weights.bytes())
}

/// Returns the number of a model's parameters; 0 if they cannot be read.
pub(crate) fn model_parameters(folder: &Path) -> u64 {
    Weights::open(folder).map_or(0, |weights| weights.elements())
}
