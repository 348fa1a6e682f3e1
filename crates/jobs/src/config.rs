//! Loads the settings of a command line, or of a run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ddk_run::RunFolder;
use ddk_settings::{Loaded, Settings};

use crate::{
    args::ConfigArgs,
    hint::{Hint, with_hint},
    signals::Signals,
};

/// Loads the settings that a command line names.
///
/// # Errors
/// If a file cannot be read, or if a key or value is wrong.
pub fn load(args: &ConfigArgs) -> Result<Loaded> {
    let environment = std::env::vars();
    let loaded = ddk_settings::load(&args.files, &args.set, environment);
    loaded.map_err(|error| {
        if let Some(folder) = args.files.iter().find(|file| file.is_dir()) {
            let shown = folder.display();
            let hint = if RunFolder::holds_a_run(folder) {
                format!(
                    "the settings of that run are in {shown}/config.toml; `ddk report {shown}` reports on it, and \
                     `ddk serve` compares runs"
                )
            } else {
                "pass the file of a configuration, which `ddk init` writes".to_owned()
            };
            with_hint(error, hint)
        } else if error.has_earlier_names() {
            let hint = "`ddk migrate CONFIG` prints a file's changes to the current names, and --write makes them";
            with_hint(error, hint)
        } else {
            error.into()
        }
    })
}

/// Begins a job with the settings of a command line.
pub(crate) fn begin(args: &ConfigArgs, signals: &Signals) -> Result<Settings> {
    let settings = load(args)?.settings;
    signals.begin_job(&settings)?;
    Ok(settings)
}

/// Returns the settings that the run in this folder was started with.
///
/// # Errors
/// If its `config.toml` cannot be read.
pub fn of_run(folder: &Path) -> Result<Settings> {
    let config = folder.join("config.toml");
    Ok(ddk_settings::load(&[config], &[], [])?.settings)
}

/// Returns the folder of the run that these settings name.
///
/// # Errors
/// If they name no run.
pub fn run_folder(settings: &Settings) -> Result<PathBuf> {
    let name = required(settings.run.name.clone(), "run.name")?;
    Ok(settings.run.output_dir.join(name))
}

/// Replaces the characters that `run.name` does not allow.
pub(crate) fn plain_name(text: &str) -> String {
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    text.replace(|letter| !is_allowed(letter), "-")
}

/// Returns the value of a key that training needs.
///
/// # Errors
/// If the key is not set.
pub fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    let value = value.with_context(|| format!("`{key}` is missing: training needs it"));
    value.usage()
}
