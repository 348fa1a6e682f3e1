//! `ddk train --fork`: a new run from a checkpoint of another, perhaps with other domains.

use std::{fs, io, path::Path};

use anyhow::{Context, Error, Result, anyhow};
use ddk_actors::{Fork, LoopState};
use ddk_corpus::PreparedDomain;
use ddk_run::{CheckpointStore, Lengths, Retention, RunFolder, SnapshotFile, records::EventKind};
use ddk_settings::{Dtype, MixturePolicy, Packing, Settings};

use super::{filters, inputs::Inputs, prepared::Prepared};
use crate::{checkpoints, config, hint::Hint, prepare, progress::say};

/// Copies a checkpoint of the run in `source` to the new run's folder: weights, moments, and the mixture of the
/// kept domains.
pub(super) fn fork(
    prepared: &Prepared,
    source: &Path,
    from: Option<u64>,
    folder: &RunFolder,
) -> Result<()> {
    if !RunFolder::holds_a_run(source) {
        return Err(anyhow!("there is no run in {} to fork", source.display()))
            .hint("set run.name to the run to fork")
            .usage();
    }
    let old = Inputs::of_run(source)?;
    prepared.inputs.same_models(&old)?;
    let store = CheckpointStore::look(&source.join("checkpoints"));
    let found = checkpoints::find(&store, from);
    let (step, path) = found.with_context(|| format!("cannot fork {}", source.display()))?;
    let state: LoopState = store.state(step).map_err(Error::msg)?;
    let settings = config::of_run(source)?;
    let kept = prepared.inputs.kept(&old);
    // Cursors of dropped domains are not needed, so only the kept domains must still exist.
    let old_rows: Vec<u64> = old
        .domains()
        .enumerate()
        .map(|(index, name)| {
            if kept.contains(&Some(index)) {
                let options = prepare::sequence_options(&settings);
                let domain = PreparedDomain::open(&settings.corpus.dir, name, options)?;
                Ok(domain.rows())
            } else {
                Ok(1)
            }
        })
        .collect::<Result<_>>()?;
    let new = &prepared.settings;
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
    let goes_on = match wanted {
        MixturePolicy::Equal | MixturePolicy::Natural | MixturePolicy::Static => false,
        _ => wanted == state.interval.policy.clone().into_policy().name(),
    };
    if !goes_on {
        let policy = prepared
            .policy()
            .hint("a fork does not run the phases of DoReMi: start a new DoReMi run, or fork one");
        state.interval.policy = policy.usage()?.state();
    }
    let files = [ddk_engine::WEIGHTS_FILE, ddk_engine::MOMENTS_FILE].map(|name| {
        let from = path.join(name);
        SnapshotFile::new(name, move |out| {
            let mut file = fs::File::open(&from)?;
            io::copy(&mut file, out).map(|_| ())
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
