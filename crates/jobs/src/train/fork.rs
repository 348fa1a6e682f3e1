//! `ddk train --fork`: a new run from a checkpoint of another, perhaps with other domains.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, Result, anyhow};
use ddk_actors::{Fork, LoopState};
use ddk_corpus::PreparedDomain;
use ddk_run::{
    CheckpointStore, Lengths, Overrides, Retention, RunFolder, SnapshotFile, records::EventKind,
    view::counted,
};
use ddk_settings::{Dtype, Packing, Settings};

use super::{
    filters,
    inputs::Inputs,
    options::{self, Length},
    policy,
    prepared::Prepared,
};
use crate::{
    checkpoints, config,
    hint::{self, Hint},
    prepare,
    progress::say,
};

/// What a fork starts from.
pub(super) struct Start {
    /// The run that is forked.
    source: PathBuf,
    /// The step of its checkpoint.
    step: u64,
    /// The checkpoint's folder.
    checkpoint: PathBuf,
    /// The new run's state: the mixture of the kept domains.
    state: LoopState,
    /// Number of domains that are kept.
    kept: usize,
    /// The learning rate of the checkpoint's step.
    learning_rate: f64,
}

/// Finds the checkpoint to fork, and checks everything before the new run's folder is made.
pub(super) fn find(prepared: &Prepared, source: &Path, from: Option<u64>) -> Result<Start> {
    hint::must_hold(" to fork", source, "set run.name to the run to fork")?;
    let old = Inputs::of_run(source)?;
    prepared.inputs.same_models(&old)?;
    let store = CheckpointStore::look(&source.join("checkpoints"));
    let found = checkpoints::find(&store, from);
    let (step, checkpoint) = found.with_context(|| format!("cannot fork {}", source.display()))?;
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
    has_a_step(new, &state, source)?;
    // Keep what a policy has learned. A different policy, or one with fixed shares, starts from the current
    // mixture.
    let wanted = new.mixture.policy;
    if wanted.is_fixed() || wanted != state.interval.policy.name() {
        let policy = policy::of_run(prepared)
            .hint("a fork does not run the phases of DoReMi: start a new DoReMi run, or fork one");
        state.interval.policy = policy.usage()?;
    }
    let overrides = Overrides::look(source);
    overrides.reload()?;
    let live = settings.with(&overrides.up_to(step))?;
    let mut schedule = options::schedule(&live);
    schedule.total_steps = Length::of_run(source, &settings)?.steps;
    Ok(Start {
        source: source.to_owned(),
        step,
        checkpoint,
        state,
        kept: kept.iter().flatten().count(),
        learning_rate: schedule.learning_rate(step),
    })
}

/// Fails if a limit of the run's length has been reached before its first step.
fn has_a_step(settings: &Settings, state: &LoopState, source: &Path) -> Result<()> {
    let (run, tokens) = (&settings.run, state.totals.all_tokens());
    let intervals = state.step / settings.mixture.interval;
    let limits = [
        ("run.max_steps", run.max_steps, state.step, "steps"),
        (
            "run.max_intervals",
            run.max_intervals,
            intervals,
            "intervals",
        ),
        ("run.max_tokens", run.max_tokens, tokens, "tokens"),
    ];
    for (key, limit, done, unit) in limits {
        let Some(limit) = limit.filter(|limit| done >= *limit) else {
            continue;
        };
        return Err(anyhow!(
            "the new run would make no step: the checkpoint of step {} in {} has {done} {unit}, and `{key}` is {limit}",
            state.step,
            source.display()
        ))
        .hint(format!(
            "{unit} count from the first step of the forked run: pass a larger limit, such as --set {key}={}, or an \
             earlier checkpoint with --resume-from",
            2 * done
        ))
        .usage();
    }
    Ok(())
}

/// Copies what a fork starts from to the new run's folder: weights, moments, and the state.
pub(super) fn write(prepared: &Prepared, start: &Start, folder: &RunFolder) -> Result<()> {
    let (step, source) = (start.step, &start.source);
    let files = [ddk_engine::WEIGHTS_FILE, ddk_engine::MOMENTS_FILE].map(|name| {
        let from = start.checkpoint.join(name);
        SnapshotFile::new(name, move |out| {
            io::copy(&mut fs::File::open(&from)?, out).map(drop)
        })
    });
    filters::fork(source, folder)?;
    let store = CheckpointStore::open(&folder.checkpoints(), Retention::last(1))?;
    store.save(step, &start.state, files.into(), || Ok(()))?;
    // From here on, the new run has a checkpoint to lose, so record it.
    let message = format!("forked from {}", source.display());
    ddk_run::record_event(folder.path(), step, EventKind::Saved, &message)?;
    let (stay, all) = (start.kept, prepared.plan.domains.len());
    say(&format!(
        "forked from step {step} of {}: {stay} of {} kept, {} new",
        source.display(),
        counted(all as u64, "domain"),
        all - stay
    ));
    let schedule = &prepared.models.options.schedule;
    say(&format!(
        "the learning rate is {:.2e} at step {}, and was {:.2e} at step {step}: this run has its own schedule of {}",
        schedule.learning_rate(step + 1),
        step + 1,
        start.learning_rate,
        counted(schedule.total_steps, "step")
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
