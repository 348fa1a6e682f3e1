//! `ddk train --fork`: a new run from a checkpoint of another, perhaps with other domains.

use std::{fs, io, path::Path};

use anyhow::{Context, Error, Result};
use ddk_actors::{Fork, LoopState};
use ddk_corpus::PreparedDomain;
use ddk_run::{CheckpointStore, Lengths, Retention, RunFolder, SnapshotFile, records::EventKind};
use ddk_settings::{Dtype, Packing, Settings};

use super::{filters, inputs::Inputs, policy, prepared::Prepared};
use crate::{
    checkpoints, config,
    hint::{self, Hint},
    prepare,
    progress::say,
};

/// Copies a checkpoint of the run in `source` to the new run's folder: weights, moments, and the mixture of the
/// kept domains.
pub(super) fn fork(
    prepared: &Prepared,
    source: &Path,
    from: Option<u64>,
    folder: &RunFolder,
) -> Result<()> {
    hint::must_hold(" to fork", source, "set run.name to the run to fork")?;
    let old = Inputs::of_run(source)?;
    prepared.inputs.same_models(&old)?;
    let store = CheckpointStore::look(&source.join("checkpoints"));
    let found = checkpoints::find(&store, from);
    let (step, path) = found.with_context(|| format!("cannot fork {}", source.display()))?;
    let state: LoopState = store.state(step).map_err(Error::msg)?;
    let settings = config::of_run(source)?;
    let kept = prepared.inputs.kept(&old);
    let rows = |(index, name): (usize, &str)| -> Result<u64> {
        // Cursors of dropped domains are not needed, so only the kept domains must still exist.
        if !kept.contains(&Some(index)) {
            return Ok(1);
        }
        let options = prepare::sequence_options(&settings);
        Ok(PreparedDomain::open(&settings.corpus.dir, name, options)?.rows())
    };
    let old_rows = old.domains().enumerate().map(rows);
    let old_rows = old_rows.collect::<Result<Vec<_>>>()?;
    let new = &prepared.models.settings;
    let mut state = state.fork(&Fork {
        kept: &kept,
        old_rows: &old_rows,
        new_rows: &prepared.plan.domain_sequences,
        sequences_per_step: settings.training.global_batch_size,
        seed: settings.run.seed,
        alike: draws_and_measures_by(&settings) == draws_and_measures_by(new),
    });
    assert_eq!(state.lengths, Lengths::default());
    // Keep what a policy has learned. A different policy, or one with fixed shares, starts from the current
    // mixture.
    let wanted = new.mixture.policy;
    if wanted.is_fixed() || wanted != state.interval.policy.name() {
        let policy = policy::of_run(prepared)
            .hint("a fork does not run the phases of DoReMi: start a new DoReMi run, or fork one");
        state.interval.policy = policy.usage()?;
    }
    let files = [ddk_engine::WEIGHTS_FILE, ddk_engine::MOMENTS_FILE].map(|name| {
        let from = path.join(name);
        SnapshotFile::new(name, move |out| {
            io::copy(&mut fs::File::open(&from)?, out).map(drop)
        })
    });
    filters::fork(source, folder)?;
    let store = CheckpointStore::open(&folder.checkpoints(), Retention::last(1))?;
    store.save(step, &state, files.into(), || Ok(()))?;
    // From here on, the new run has a checkpoint to lose, so record it.
    let message = format!("forked from {}", source.display());
    ddk_run::record_event(folder.path(), step, EventKind::Saved, &message)?;
    let stay = kept.iter().flatten().count();
    say(&format!(
        "forked from step {step} of {}: {stay} of {} domains are kept, {} are new",
        source.display(),
        kept.len(),
        kept.len() - stay
    ));
    Ok(())
}

/// Returns the settings that an interval's draws and perplexities depend on.
fn draws_and_measures_by(settings: &Settings) -> (u64, u64, usize, Packing, bool, Dtype, Dtype) {
    (
        settings.run.seed,
        settings.training.global_batch_size,
        settings.corpus.sequence_length,
        settings.corpus.packing,
        settings.objective.completion_only_loss,
        settings.teacher.dtype,
        settings.student.dtype,
    )
}
