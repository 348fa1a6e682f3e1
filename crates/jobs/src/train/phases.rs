//! Preliminary runs: DoReMi's first two phases, and TED's first stage.
//!
//! Each is an ordinary run in `phases/` within the run's folder: it saves checkpoints, resumes, and is left alone once
//! it is done.

use std::path::Path;

use anyhow::{Context, Result, bail};
use ddk_actors::LoopState;
use ddk_mixture::{Feedback, Policy};
use ddk_run::{CheckpointStore, RunFolder, view::counted};
use ddk_settings::{InitialMixture, LrScheduler, MixturePolicy, ObjectiveName, Settings, Teacher};

use super::{
    changes,
    filters::{STAGE, file},
    prepared::Prepared,
    run::{phase, settings_of},
    session::Session,
};
use crate::{
    config::run_folder,
    progress::{list_weights, say},
};

/// Runs what remains of DoReMi's reference model and of the proxy that finds the mixture. Returns the proxy's mean
/// weights, one per domain. `reloads`: whether SIGHUP reloads this program's settings.
pub(super) fn doremi(run: &Prepared, reloads: bool, session: &mut Session) -> Result<Vec<f64>> {
    let _answers = changes::not_yet(reloads, &session.runtime)?;
    let settings = &run.models.settings;
    let folder = run_folder(settings)?.join("phases");
    let steps = settings.mixture.doremi_steps.unwrap_or(run.length.steps);
    let place = format!("{}, in {}", counted(steps, "step"), folder.display());
    say(&format!(
        "doremi, phase 1 of 3: the reference, by cross-entropy on the natural mixture; {place}"
    ));
    let mut reference = common(settings, &folder, REFERENCE, steps);
    reference.mixture.policy = MixturePolicy::Natural;
    phase(&reference, session)?;
    say(&format!(
        "doremi, phase 2 of 3: the proxy, whose excess over the reference moves the mixture; {place}"
    ));
    phase(&proxy(settings, &folder, steps), session)?;
    let weights = mean_weights(&folder.join(PROXY))?;
    let domains = run.plan.domains.iter().map(String::as_str);
    say(&format!(
        "doremi, phase 3 of 3: this run, on the proxy's mean weights: {}",
        list_weights(domains.zip(weights.clone()))
    ));
    Ok(weights)
}

const REFERENCE: &str = "reference";
const PROXY: &str = "proxy";

/// Returns what both phases share: a small model that learns by cross-entropy alone, for a fixed number of steps.
fn common(settings: &Settings, folder: &Path, name: &str, steps: u64) -> Settings {
    let mut phase = settings_of(settings, folder, name, steps);
    // Use the run's corpus, whatever tokenizer folder the model has.
    phase.corpus.tokenizer = settings.tokenizer_folder().cloned();
    if let Some(model) = &settings.mixture.doremi_model {
        phase.student.model = Some(model.clone());
    }
    phase.objective.name = ObjectiveName::Ce;
    phase
}

/// Returns the settings of the proxy. The reference takes the teacher's place; the weights start equal, as in the
/// paper.
fn proxy(settings: &Settings, folder: &Path, steps: u64) -> Settings {
    let mut phase = common(settings, folder, PROXY, steps);
    phase.mixture.policy = MixturePolicy::DoremiProxy;
    phase.mixture.initial = InitialMixture::Equal;
    // Each replica fits on one device, because it is as small as the student.
    let first = |replica: &String| replica.split('+').take(1).collect();
    let devices = if settings.teacher.is_served() {
        vec![settings.student.device.clone()]
    } else {
        settings.teacher.devices.iter().map(first).collect()
    };
    phase.teacher = Teacher {
        model: Some(folder.join(REFERENCE).join("student")),
        devices,
        batch_size: settings.teacher.batch_size,
        threads: settings.teacher.threads,
        ..Teacher::default()
    };
    phase.teacher.dtype = settings.student.dtype;
    phase
}

/// Returns the mean over all steps of the proxy, including the last update, which no interval followed.
fn mean_weights(proxy: &Path) -> Result<Vec<f64>> {
    let shown = proxy.display();
    let newest = CheckpointStore::look(&proxy.join("checkpoints")).newest::<LoopState>()?;
    let newest = newest.with_context(|| format!("the DoReMi proxy in {shown} has no checkpoint"));
    let state = newest?.state;
    let mut policy = state.interval.policy;
    let feedback = Feedback {
        perplexities: None,
        training: &state.interval_losses,
        // The proxy's policy does not depend on it.
        decay_left: 1.0,
    };
    let last = policy.next(&state.interval.weights, &feedback);
    let Policy::DoremiProxy(state) = policy else {
        bail!("the run in {shown} is not a DoReMi proxy");
    };
    if let Err(refused) = last {
        tracing::warn!(%refused, "leaving the proxy's last update out of the mean");
    }
    let weights = state.mean_weights();
    weights.with_context(|| format!("the DoReMi proxy in {shown} never updated the mixture"))
}

/// Runs the rest of TED's first stage, which trains filters for pairs of layers. `reloads`: whether SIGHUP reloads this
/// program's settings.
pub(super) fn ted(
    settings: &Settings,
    folder: &RunFolder,
    reloads: bool,
    session: &mut Session,
) -> Result<()> {
    if file(folder.path()).exists() {
        return Ok(());
    }
    let _answers = changes::not_yet(reloads, &session.runtime)?;
    let stage = stage(settings, folder.path());
    say(&format!(
        "ted, stage 1 of 2: train the filters of the layer pairs on the task, with both models frozen; {}, in {}",
        counted(settings.objective.ted_steps, "step"),
        folder.path().join(STAGE).display()
    ));
    phase(&stage, session)?;
    say("ted, stage 2 of 2: this run trains the student and its filters together");
    Ok(())
}

/// Returns the settings of TED's first stage: natural shares of the run's domains, in one interval.
fn stage(settings: &Settings, folder: &Path) -> Settings {
    let (steps, lr) = (settings.objective.ted_steps, settings.objective.ted_lr);
    let (parent, name) = STAGE.split_once('/').unwrap_or((STAGE, STAGE));
    let mut stage = settings_of(settings, &folder.join(parent), name, steps);
    stage.objective.name = ObjectiveName::TedFilters;
    stage.optimizer.lr = lr;
    stage.lr_scheduler = LrScheduler {
        min_lr: lr / 10.0,
        warmup_steps: steps / 20,
        ..LrScheduler::default()
    };
    stage.mixture.policy = MixturePolicy::Natural;
    stage.mixture.interval = steps;
    stage
}
