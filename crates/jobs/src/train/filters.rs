//! TED's filters: which layers they connect, and where they are stored between the stages.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use ddk_engine::{Filters, LayerPair, WEIGHTS_FILE};
use ddk_model::ModelConfig;
use ddk_run::RunFolder;
use ddk_settings::{ObjectiveName, Settings};

use crate::{config::run_folder, hint::usage, progress::say, wiring::ModelFolders};

/// The folder of the first stage within a run's folder.
pub(super) const STAGE: &str = "phases/filters";
/// The file that the first stage leaves in its folder.
const FILTERS_FILE: &str = "filters.safetensors";

/// Returns the run's filters, or none if its loss has no layers.
pub(super) fn of_run(settings: &Settings, folders: &ModelFolders) -> Result<Option<Filters>> {
    let learned = match settings.objective.name {
        ObjectiveName::Ted => Some(file(&run_folder(settings)?)),
        ObjectiveName::TedFilters => None,
        _ => return Ok(None),
    };
    let (teacher, student) = folders.configs()?;
    let pairs = layer_pairs(&settings.objective, &student, &teacher)?;
    Ok(Some(Filters { pairs, learned }))
}

/// Returns the pairs of layers that TED compares; empty for other objectives.
///
/// # Errors
/// If `objective.ted_layers` names a layer that a model does not have.
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
    let pairs = pairs.iter().map(|&[student, teacher]| {
        let (student, teacher) = (student as usize, teacher as usize);
        ensure!(
            student <= of_student && teacher <= of_teacher,
            usage(anyhow!(
                "`objective.ted_layers` contains [{student}, {teacher}], but the student has layers 1 to {of_student} \
                 and the teacher has layers 1 to {of_teacher}"
            ))
        );
        Ok(LayerPair { student, teacher })
    });
    pairs.collect()
}

/// Copies the filters of the first stage's last checkpoint to where the second stage expects them.
pub(super) fn export(folder: &RunFolder, checkpoint: &Path) -> Result<()> {
    let file = folder.path().join(FILTERS_FILE);
    copy(&checkpoint.join(WEIGHTS_FILE), &file)?;
    say(&format!("wrote the filters to {}", file.display()));
    Ok(())
}

/// Copies the filters of the forked run, if it has any.
pub(super) fn fork(source: &Path, folder: &RunFolder) -> Result<()> {
    let (from, to) = (file(source), file(folder.path()));
    if !from.exists() {
        return Ok(());
    }
    ddk_files::create_folder(ddk_files::parent(&to))?;
    copy(&from, &to)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    Ok(ddk_files::write_atomically(to, &bytes)?)
}

pub(super) fn file(run: &Path) -> PathBuf {
    run.join(STAGE).join(FILTERS_FILE)
}
