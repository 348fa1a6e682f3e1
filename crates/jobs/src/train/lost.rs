//! A run that has lost its checkpoints does not begin again by itself.

use anyhow::{Result, anyhow};
use ddk_run::{CheckpointStore, RunFolder};

use crate::{hint::Hint, progress::say};

/// What to do where no checkpoint loads.
pub(super) const ADVICE: &str = "restore it, or start over at step 0 with --restart, which sets the old files \
                                 aside and deletes nothing";

/// Whether there is a checkpoint, sound or not.
pub(super) fn has_checkpoints(folder: &RunFolder) -> Result<bool> {
    let checkpoints = folder.checkpoints();
    Ok(checkpoints.exists() && !CheckpointStore::look(&checkpoints).steps()?.is_empty())
}

/// Where there is no checkpoint: refuses to begin at step 0 if one was ever saved.
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

/// Sets aside all that the run has made.
pub(super) fn start_over(folder: &RunFolder) -> Result<()> {
    let aside = folder.start_over()?;
    say(&format!(
        "starting over at step 0; the old files of the run are in {}",
        aside.display()
    ));
    Ok(())
}
