//! `ddk checkpoints`: which checkpoints a run has, and which of them is the best.

use std::{io::Write, path::Path};

use anyhow::Result;
use ddk_actors::LoopState;
use ddk_run::{CheckpointStore, Measured};

use crate::{cli, hint};

pub fn run(args: &cli::Checkpoints, out: &mut dyn Write) -> Result<()> {
    hint::must_hold_a_run(&args.run)?;
    let folder = args.run.join("checkpoints");
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
    let best = Measured::best(&measured(&args.run, &store)?, verified);
    writeln!(out, "{:>10}  {:>12}  state", "step", "MB")?;
    for entry in &entries {
        let step = entry.step;
        let mark = match best.filter(|best| best.step == step) {
            Some(best) => format!(", best (mean ratio {:.3})", best.ratio),
            None => String::new(),
        };
        match &entry.status {
            Ok(bytes) => writeln!(
                out,
                "{step:>10}  {:>12.1}  verified{mark}",
                *bytes as f64 / 1e6
            )?,
            Err(reason) => writeln!(out, "{step:>10}  {:>12}  damaged: {reason}", "")?,
        }
    }
    Ok(())
}

/// The best of what was measured, where its checkpoint verifies.
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

/// What was measured of a run: what its newest checkpoint holds, and the last evaluation of one that is done.
pub fn measured(run: &Path, store: &CheckpointStore) -> Result<Vec<Measured>> {
    let newest = store.steps()?.into_iter().rev();
    let mut states = newest.filter_map(|step| store.state::<LoopState>(step).ok());
    let mut measured = states.next().map_or_else(Vec::new, |state| state.measured);
    if let Ok(summary) = ddk_run::read::summary(run) {
        let ratios = summary.domains.values().map(|domain| domain.ratio_after);
        let ratio = ratios.sum::<f64>() / summary.domains.len() as f64;
        let known = measured.iter().any(|one| one.step == summary.steps);
        if ratio.is_finite() && !known {
            measured.push(Measured {
                step: summary.steps,
                ratio,
            });
        }
    }
    Ok(measured)
}
