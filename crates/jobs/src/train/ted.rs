//! TED's first stage: trains filters for pairs of layers, in a separate run in `phases/filters` within the run's
//! folder.

use std::path::Path;

use anyhow::Result;
use ddk_run::RunFolder;
use ddk_settings::{MixturePolicy, ObjectiveName, Settings};

use super::{
    filters::{STAGE, file},
    run::{phase, settings_of},
    session::Session,
};
use crate::progress::say;

/// Runs the rest of the first stage. `reloads`: whether SIGHUP reloads this program's settings.
pub(super) fn first_stage(
    settings: &Settings,
    folder: &RunFolder,
    reloads: bool,
    session: &mut Session,
) -> Result<()> {
    if file(folder.path()).exists() {
        return Ok(());
    }
    let _answers = reloads.then(|| session.answer_hangup()).transpose()?;
    let stage = stage(settings, folder.path());
    say(&format!(
        "ted, stage 1 of 2: train the filters of the layer pairs on the task, with both models frozen; {} steps, in {}",
        settings.objective.ted_steps,
        folder.path().join(STAGE).display()
    ));
    phase(&stage, session)?;
    say("ted, stage 2 of 2: this run trains the student and its filters together");
    Ok(())
}

/// Returns the settings of the first stage: natural shares of the run's domains, in one interval.
fn stage(settings: &Settings, folder: &Path) -> Settings {
    let (steps, lr) = (settings.objective.ted_steps, settings.objective.ted_lr);
    let (parent, name) = STAGE.split_once('/').unwrap_or((STAGE, STAGE));
    let mut stage = settings_of(settings, &folder.join(parent), name, steps);
    stage.objective.name = ObjectiveName::TedFilters;
    stage.optimizer.lr = lr;
    stage.lr_scheduler.min_lr = lr / 10.0;
    stage.lr_scheduler.warmup_steps = steps / 20;
    stage.mixture.policy = MixturePolicy::Natural;
    stage.mixture.interval = steps;
    stage
}
