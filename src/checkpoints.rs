//! `ddk checkpoints`: lists a run's checkpoints and marks the best one.

use std::{io::Write, path::Path};

use anyhow::Result;
use ddk_jobs::{checkpoints::measured, hint};
use ddk_report::document::Table;
use ddk_run::{CheckpointStore, Measured};

/// Prints the checkpoints of a run and marks the best.
///
/// # Errors
/// If the folder holds no run, if its checkpoints cannot be listed, or if `out` cannot be written.
pub fn run(run: &Path, out: &mut dyn Write) -> Result<()> {
    hint::must_hold_a_run(run)?;
    let folder = run.join("checkpoints");
    if !folder.exists() {
        writeln!(out, "the run has no checkpoint yet")?;
        return Ok(());
    }
    let store = CheckpointStore::look(&folder);
    let entries = store.list()?;
    let verified = |step| {
        let mut entries = entries.iter();
        entries.any(|entry| entry.step == step && entry.status.is_ok())
    };
    let best = Measured::best(&measured(run, &store)?, verified);
    let mut table = Table::new(["step", "MB", "state"]);
    for entry in &entries {
        let step = entry.step;
        let mark = best.filter(|best| best.step == step);
        let mark = mark.map(|best| format!(", best (mean gap {:.3})", best.gap));
        let passed = format!("verified{}", mark.unwrap_or_default());
        let (size, state) = match &entry.status {
            Ok(bytes) => (format!("{:.1}", *bytes as f64 / 1e6), passed),
            Err(reason) => (String::new(), format!("damaged: {reason}")),
        };
        table.row([step.to_string(), size, state]);
    }
    Ok(write!(out, "{table}")?)
}
