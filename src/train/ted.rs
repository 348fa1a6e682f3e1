//! TED's first stage: filters for pairs of layers, in a run of their own in `phases/filters` within the run's folder.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, anyhow};
use ddk_engine::{Filters, LayerPair, WEIGHTS_FILE};
use ddk_model::ModelConfig;
use ddk_run::RunFolder;
use ddk_settings::{ExportedStudent, Mixture, MixturePolicy, ObjectiveName, Settings};

use super::{Ran, phase, required, session::Session};
use crate::{hint::Hint, progress::say, wiring::ModelFolders};

/// The folder of the first stage within a run's.
const STAGE: &str = "phases/filters";
/// What the first stage leaves in its folder.
const FILTERS_FILE: &str = "filters.safetensors";

/// What the run does with filters; none where its loss has no layers.
pub(super) fn filters(settings: &Settings, folders: &ModelFolders) -> Result<Option<Filters>> {
    let learnt = match settings.objective.name {
        ObjectiveName::Ted => {
            let name = required(settings.run.name.clone(), "run.name")?;
            Some(file(&settings.run.folder.join(name)))
        }
        ObjectiveName::TedFilters => None,
        _ => return Ok(None),
    };
    let student = ModelConfig::read(&folders.student)?;
    let teacher = ModelConfig::read(&folders.teacher)?;
    let pairs = layer_pairs(&settings.objective, &student, &teacher)?;
    Ok(Some(Filters { pairs, learnt }))
}

/// The pairs of layers that TED compares; empty for other objectives.
pub fn layer_pairs(
    objective: &ddk_settings::Objective,
    student: &ModelConfig,
    teacher: &ModelConfig,
) -> Result<Vec<LayerPair>> {
    if !objective.has_layers() {
        return Ok(Vec::new());
    }
    let layers = |config: &ModelConfig| usize::try_from(config.layers()).unwrap_or(0);
    let (of_student, of_teacher) = (layers(student), layers(teacher));
    let Some(pairs) = &objective.ted_layers else {
        return Ok(LayerPair::spread(of_student, of_teacher));
    };
    let pairs = pairs.iter().map(|&[student, teacher]| LayerPair {
        student: student as usize,
        teacher: teacher as usize,
    });
    let pairs: Vec<LayerPair> = pairs.collect();
    let absent = |pair: &&LayerPair| pair.student > of_student || pair.teacher > of_teacher;
    match pairs.iter().find(absent) {
        Some(pair) => Err(anyhow!(
            "`objective.ted_layers` holds [{}, {}], but the student has the layers 1 to {of_student} and the teacher 1 to {of_teacher}",
            pair.student,
            pair.teacher
        ))
        .usage(),
        None => Ok(pairs),
    }
}

/// Runs what is left of the first stage; the program's exit code where a signal stopped it. `reloads`:
/// whether SIGHUP is meant for this program.
pub(super) fn first_stage(
    settings: &Settings,
    folder: &RunFolder,
    reloads: bool,
    session: &mut Session,
) -> Result<Option<ExitCode>> {
    if file(folder.path()).exists() {
        return Ok(None);
    }
    let _answers = reloads.then(|| session.answer_hangup()).transpose()?;
    let stage = stage(settings, folder.path());
    say(&format!(
        "ted, stage 1 of 2: filters for pairs of layers learn the task, both models frozen; {} steps, in {}",
        settings.objective.ted_steps,
        folder.path().join(STAGE).display()
    ));
    if let Ran::Stopped(code) = phase(&stage, session)? {
        return Ok(Some(code));
    }
    say("ted, stage 2 of 2: this run, the student and its filters learn together");
    Ok(None)
}

/// The settings of the first stage: the run's rows by their natural shares, one interval long.
fn stage(settings: &Settings, folder: &Path) -> Settings {
    let mut stage = settings.clone();
    let (steps, lr) = (settings.objective.ted_steps, settings.objective.ted_lr);
    let (parent, name) = STAGE.split_once('/').unwrap_or((STAGE, STAGE));
    stage.run.folder = folder.join(parent);
    stage.run.name = Some(name.to_owned());
    stage.run.max_steps = Some(steps);
    stage.run.max_intervals = None;
    stage.run.max_tokens = None;
    stage.run.stop_ratio = None;
    stage.student.schedule_steps = None;
    stage.objective.name = ObjectiveName::TedFilters;
    stage.student.lr = lr;
    stage.student.lr_end = lr / 10.0;
    stage.student.warmup_steps = steps / 20;
    stage.evaluation.every = None;
    stage.checkpoint.keep_best = false;
    stage.run.export = ExportedStudent::Last;
    stage.mixture = Mixture {
        policy: MixturePolicy::Natural,
        interval: steps,
        doremi_model: None,
        doremi_steps: None,
        ..settings.mixture.clone()
    };
    stage
}

/// Puts the filters of the first stage's last checkpoint where the second one looks for them.
pub(super) fn export(folder: &RunFolder, checkpoint: &Path) -> Result<()> {
    let from = checkpoint.join(WEIGHTS_FILE);
    let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    let file = folder.path().join(FILTERS_FILE);
    ddk_run::write_atomically(&file, &bytes)?;
    say(&format!("filters in {}", file.display()));
    Ok(())
}

/// Takes the filters of the run that is forked along, where it has some.
pub(super) fn fork(source: &Path, folder: &RunFolder) -> Result<()> {
    let (from, to) = (file(source), file(folder.path()));
    if !from.exists() {
        return Ok(());
    }
    let bytes = fs::read(&from).with_context(|| format!("cannot read {}", from.display()))?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    ddk_run::write_atomically(&to, &bytes)?;
    Ok(())
}

fn file(run: &Path) -> PathBuf {
    run.join(STAGE).join(FILTERS_FILE)
}
