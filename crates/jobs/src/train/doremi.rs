//! DoReMi's first two phases: a reference model, then a proxy that finds the mixture. The run itself is the third.
//!
//! Each phase is an ordinary run in `phases/` within the run's folder: it saves checkpoints, resumes, and is left
//! alone once it is done.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use ddk_actors::LoopState;
use ddk_mixture::{Feedback, PolicyState};
use ddk_run::CheckpointStore;
use ddk_settings::{InitialMixture, MixturePolicy, ObjectiveName, Settings};

use super::{
    run::{phase, settings_of},
    session::Session,
};
use crate::{config::run_folder, prepare::tokenizer_folder, progress::say};

/// Runs the remaining phases and returns the proxy's mean weights, one per domain. `run_steps`: steps in the run's
/// schedule. `reloads`: whether SIGHUP reloads this program's settings.
pub(super) fn phases(
    settings: &Settings,
    domains: &[String],
    run_steps: u64,
    reloads: bool,
    session: &mut Session,
) -> Result<Vec<f64>> {
    let _answers = reloads.then(|| session.answer_hangup()).transpose()?;
    let folder = run_folder(settings)?.join("phases");
    let steps = settings.mixture.doremi_steps.unwrap_or(run_steps);
    let place = format!("{steps} steps, in {}", folder.display());
    say(&format!(
        "doremi, phase 1 of 3: the reference, by cross-entropy on the natural mixture; {place}"
    ));
    phase(&reference(settings, &folder, steps), session)?;
    say(&format!(
        "doremi, phase 2 of 3: the proxy, whose excess over the reference moves the mixture; {place}"
    ));
    phase(&proxy(settings, &folder, steps), session)?;
    let weights = mean_weights(&folder.join(PROXY))?;
    let named = domains.iter().zip(&weights);
    let named: Vec<String> = named
        .map(|(name, weight)| format!("{name} {weight:.3}"))
        .collect();
    say(&format!(
        "doremi, phase 3 of 3: this run, on the proxy's mean weights: {}",
        named.join(" ")
    ));
    Ok(weights)
}

const REFERENCE: &str = "reference";
const PROXY: &str = "proxy";

/// Returns what both phases share: a small model that learns by cross-entropy alone, for a fixed number of steps.
fn common(settings: &Settings, folder: &Path, name: &str, steps: u64) -> Settings {
    let mut phase = settings_of(settings, folder, name, steps);
    // Use the run's corpus, whatever tokenizer folder the model has.
    phase.corpus.tokenizer = tokenizer_folder(settings).cloned();
    if let Some(model) = &settings.mixture.doremi_model {
        phase.student.model = Some(model.clone());
    }
    phase.objective.name = ObjectiveName::Ce;
    phase
}

fn reference(settings: &Settings, folder: &Path, steps: u64) -> Settings {
    let mut phase = common(settings, folder, REFERENCE, steps);
    phase.mixture.policy = MixturePolicy::Natural;
    phase
}

/// The reference takes the teacher's place; the weights start equal, as in the paper.
fn proxy(settings: &Settings, folder: &Path, steps: u64) -> Settings {
    let mut phase = common(settings, folder, PROXY, steps);
    phase.mixture.policy = MixturePolicy::DoremiProxy;
    phase.mixture.initial = InitialMixture::Equal;
    phase.teacher.model = Some(folder.join(REFERENCE).join("student"));
    // Each replica fits on one device, because it is as small as the student.
    for replica in &mut phase.teacher.devices {
        replica.truncate(replica.find('+').unwrap_or(replica.len()));
    }
    phase.teacher.dtype = settings.student.dtype;
    phase
}

/// Returns the mean over all steps of the proxy, including the last update, which no interval followed.
fn mean_weights(proxy: &Path) -> Result<Vec<f64>> {
    let newest = CheckpointStore::look(&proxy.join("checkpoints"))
        .newest::<LoopState>()?
        .ok_or_else(|| anyhow!("the DoReMi proxy in {} has no checkpoint", proxy.display()))?;
    let LoopState {
        interval,
        interval_losses,
        ..
    } = newest.state;
    let mut policy = interval.policy.into_policy();
    let last = policy.next(
        &interval.weights,
        &Feedback {
            perplexities: None,
            training: &interval_losses,
        },
    );
    let PolicyState::DoremiProxy(state) = policy.state() else {
        return Err(anyhow!(
            "the run in {} is not a DoReMi proxy",
            proxy.display()
        ));
    };
    if let Err(refused) = last {
        tracing::warn!(%refused, "leaving the proxy's last update out of the mean");
    }
    state.mean_weights().with_context(|| {
        format!(
            "the DoReMi proxy in {} never updated the mixture",
            proxy.display()
        )
    })
}
