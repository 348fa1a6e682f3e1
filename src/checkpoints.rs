//! `ddk checkpoints`: lists a run's checkpoints and marks the best one.

use std::{fs, io::Write, path::Path, time::UNIX_EPOCH};

use anyhow::Result;
use ddk_jobs::{checkpoints::measured, hint};
use ddk_report::{document::Table, run_report::moment};
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
    let measured = measured(run, &store)?;
    let best = Measured::best(&measured, verified);
    let mut table = Table::new(["step", "saved (UTC)", "MB", "mean gap", "state"]);
    for entry in &entries {
        let step = entry.step;
        let is_best = best.is_some_and(|best| best.step == step);
        let passed = if is_best {
            "verified, best"
        } else {
            "verified"
        };
        let gap = measured.iter().find(|one| one.step == step);
        let gap = gap.map_or_else(String::new, |one| format!("{:.3}", one.gap));
        let (size, state) = match &entry.status {
            Ok(bytes) => (format!("{:.1}", *bytes as f64 / 1e6), passed.to_owned()),
            Err(reason) => (String::new(), format!("damaged: {reason}")),
        };
        table.row([step.to_string(), saved(&entry.path), size, gap, state]);
    }
    Ok(write!(out, "{table}")?)
}

/// When a checkpoint was saved: its manifest is written last.
fn saved(checkpoint: &Path) -> String {
    let modified = fs::metadata(checkpoint.join("manifest.json")).and_then(|file| file.modified());
    let since = modified
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since.map_or_else(String::new, |since| moment(since.as_secs_f64()))
}
