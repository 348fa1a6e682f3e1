//! Finds the checkpoints of a run: the measured ones, the best and the newest. Keeps a run that has lost its
//! checkpoints from starting over by itself.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use ddk_actors::LoopState;
use ddk_run::{CheckpointStore, Measured, Override, Overrides, RunFolder};

use crate::{hint::Hint, progress::say};

/// Returns the best measured step whose checkpoint verifies.
///
/// # Errors
/// If the folder of checkpoints cannot be read.
pub fn best(store: &CheckpointStore, measured: &[Measured]) -> Result<Option<Measured>> {
    let mut steps = store.steps()?;
    while let Some(best) = Measured::best(measured, |step| steps.contains(&step)) {
        if store.entry(best.step).status.is_ok() {
            return Ok(Some(best));
        }
        steps.retain(|step| *step != best.step);
    }
    Ok(None)
}

/// Returns the measurements of a run: those in its newest checkpoint and, for a finished run, the last evaluation.
///
/// # Errors
/// If the folder of checkpoints cannot be read.
pub fn measured(run: &Path, store: &CheckpointStore) -> Result<Vec<Measured>> {
    let newest = store.steps()?.into_iter().rev();
    let mut states = newest.filter_map(|step| store.state::<LoopState>(step).ok());
    let mut measured = states.next().map_or_else(Vec::new, |state| state.measured);
    if let Ok(summary) = ddk_run::read::summary(run) {
        let gaps = summary.domains.values().map(|domain| domain.gap_after);
        let gap = gaps.sum::<f64>() / summary.domains.len() as f64;
        let known = measured.iter().any(|one| one.step == summary.steps);
        if gap.is_finite() && !known {
            measured.push(Measured {
                step: summary.steps,
                gap,
            });
        }
    }
    Ok(measured)
}

/// Verifies the checkpoint of a step and returns its folder.
///
/// # Errors
/// If the run has no checkpoint of this step, or if it is damaged.
pub fn checkpoint_of(store: &CheckpointStore, step: u64) -> Result<PathBuf> {
    let steps = store.steps()?;
    if !steps.contains(&step) {
        return Err(anyhow!("the run has no checkpoint of step {step}"))
            .hint(near(step, &steps))
            .usage();
    }
    let entry = store.entry(step);
    let path = entry.path.display();
    let status = entry.status;
    status.map_err(|reason| anyhow!("{path} is damaged: {reason}"))?;
    Ok(entry.path)
}

/// A hint that names the steps near a missing one. `steps` are those of all checkpoints, in order.
fn near(step: u64, steps: &[u64]) -> String {
    const LISTED: usize = 8;
    let after = steps.partition_point(|other| *other < step);
    let begin = after.saturating_sub(LISTED / 2);
    let begin = begin.min(steps.len().saturating_sub(LISTED));
    let nearest = &steps[begin..steps.len().min(begin + LISTED)];
    let listed: Vec<String> = nearest.iter().map(u64::to_string).collect();
    let listed = listed.join(", ");
    match steps.len() {
        0 => "the run has no checkpoint at all".to_owned(),
        count if count <= LISTED => format!("available steps: {listed}"),
        count => format!("the nearest of {count}: {listed}; `ddk checkpoints` lists all"),
    }
}

/// Verifies the checkpoint of a step, or finds the newest that verifies. Returns its step and folder.
///
/// # Errors
/// If there is no such checkpoint, or if none verifies.
pub fn find(store: &CheckpointStore, step: Option<u64>) -> Result<(u64, PathBuf)> {
    if let Some(step) = step {
        return Ok((step, checkpoint_of(store, step)?));
    }
    let newest = store.newest::<LoopState>()?;
    let newest = newest.context("the run has no checkpoint yet")?;
    for skipped in &newest.skipped {
        if let Err(reason) = &skipped.status {
            say(&format!(
                "warning: {} is damaged and skipped: {reason}",
                skipped.path.display()
            ));
        }
    }
    Ok((newest.step, newest.path))
}

/// Sets aside the checkpoints after `step`, so that the run resumes from there.
pub(crate) fn go_back(folder: &RunFolder, step: u64) -> Result<()> {
    let store = CheckpointStore::look(&folder.checkpoints());
    checkpoint_of(&store, step)?;
    for newer in store.set_aside_after(step)? {
        say(&format!("the checkpoint of step {newer} is set aside"));
    }
    Ok(Overrides::open(folder.path())?.append(Override {
        step: step + 1,
        discard_later: true,
        ..Override::default()
    })?)
}

/// Hint for a run without a usable checkpoint.
pub(crate) const LOST: &str = "restore it, or start over at step 0 with --restart, which sets the old files aside \
                               and deletes nothing";

/// Returns whether there is a checkpoint, intact or damaged.
pub(crate) fn are_in(folder: &RunFolder) -> Result<bool> {
    let checkpoints = folder.checkpoints();
    Ok(checkpoints.exists() && !CheckpointStore::look(&checkpoints).steps()?.is_empty())
}

/// If there is no checkpoint, fails if one was ever saved, so that the run does not start over at step 0.
pub(crate) fn refuse_if_saved(folder: &RunFolder) -> Result<()> {
    if are_in(folder)? {
        return Ok(());
    }
    let Some(step) = ddk_run::recorded_save(folder.path()).hint(LOST)? else {
        return Ok(());
    };
    Err(anyhow!(
        "events.jsonl of the run in {} records a checkpoint of step {step}, but {} holds none",
        folder.path().display(),
        folder.checkpoints().display()
    ))
    .hint(LOST)
}

/// Sets aside everything that the run has written.
pub(crate) fn start_over(folder: &RunFolder) -> Result<()> {
    let aside = folder.start_over()?;
    say(&format!(
        "starting over at step 0; the old files of the run are in {}",
        aside.display()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_step_is_answered_with_the_nearest_ones() {
        let every_ten: Vec<u64> = (1..=40).map(|step| 10 * step).collect();
        for (step, listed) in [
            (77, "40, 50, 60, 70, 80, 90, 100, 110"),
            (3, "10, 20, 30, 40, 50, 60, 70, 80"),
            (999, "330, 340, 350, 360, 370, 380, 390, 400"),
        ] {
            let hint = near(step, &every_ten);
            assert!(
                hint.contains(&format!("nearest of 40: {listed};")),
                "{hint}"
            );
        }
        assert_eq!(near(7, &[3, 6, 9]), "available steps: 3, 6, 9");
    }
}
