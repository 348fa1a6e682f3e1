//! Keeps a run that has lost its checkpoints from starting over by itself.

use anyhow::{Result, anyhow};
use ddk_run::{CheckpointStore, RunFolder};

use crate::{hint::Hint, progress::say};

/// Hint for a run without a usable checkpoint.
pub(super) const ADVICE: &str = "restore it, or start over at step 0 with --restart, which sets the old files \
                                 aside and deletes nothing";

/// Returns whether there is a checkpoint, intact or damaged.
pub(super) fn has_checkpoints(folder: &RunFolder) -> Result<bool> {
    let checkpoints = folder.checkpoints();
    Ok(checkpoints.exists() && !CheckpointStore::look(&checkpoints).steps()?.is_empty())
}

/// If there is no checkpoint, fails if one was ever saved, so that the run does not start over at step 0.
pub(super) fn refuse_if_saved(folder: &RunFolder) -> Result<()> {
    if has_checkpoints(folder)? {
        return Ok(());
    }
    let Some(step) = ddk_run::recorded_save(folder.path()).hint(ADVICE)? else {
        return Ok(());
    };
    Err(anyhow!(
        "events.jsonl of the run in {} records a checkpoint of step {step}, but {} holds none",
        folder.path().display(),
        folder.checkpoints().display()
    ))
    .hint(ADVICE)
}

/// Sets aside everything that the run has written.
pub(super) fn start_over(folder: &RunFolder) -> Result<()> {
    let aside = folder.start_over()?;
    say(&format!(
        "starting over at step 0; the old files of the run are in {}",
        aside.display()
    ));
    Ok(())
}
