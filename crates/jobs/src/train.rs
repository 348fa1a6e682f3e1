//! `ddk train`: a distillation from configuration to exported student.

mod assembly;
mod changes;
mod doremi;
pub(crate) mod filters;
mod fork;
pub(crate) mod inputs;
mod lost;
pub(crate) mod options;
mod plan;
mod policy;
pub(crate) mod prepared;
mod result;
pub(crate) mod run;
mod schedule;
mod session;
mod ted;
mod threads;
mod workers;

use std::io::Write;

use anyhow::{Result, anyhow};
use ddk_run::RunFolder;
use ddk_settings::{MixturePolicy, ObjectiveName, Settings};

pub use self::run::Flags;
use self::{
    prepared::{Prepared, prepare_run},
    run::{bind, open_folder, run_to_end},
    schedule::Length,
    session::Session,
};
use crate::{
    args,
    checkpoints::go_back,
    config::{self, run_folder},
    hint::Hint,
    phase::Phase,
    prepare::Outdated,
    progress::say,
    signals::Signals,
};

/// Distills according to the command line. Resumes if the run folder holds a run.
///
/// # Errors
/// If the settings are wrong or do not match the run, or if a worker fails for good.
pub fn run(args: &args::Train, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let mut args = args.clone();
    let sets = &mut args.config.set.set;
    if let Some(file) = &args.metrics_file {
        let file = toml::Value::String(file.display().to_string());
        sets.push(format!("telemetry.metrics_file={file}"));
    }
    let mut settings = config::load(&args.config)?.settings;
    let mut fork_of = None;
    if let Some(name) = &args.fork {
        fork_of = Some(run_folder(&settings)?);
        // Treat it like `--set`, so that it is checked like any other name.
        let name = toml::Value::String(name.clone());
        args.config.set.set.push(format!("run.name={name}"));
        settings = config::load(&args.config)?.settings;
    }
    let flags = Flags {
        args,
        reloads: true,
        fork_of,
    };
    distill(&settings, &flags, signals, out)
}

/// Distills according to the settings. Resumes if the run folder holds a checkpoint.
///
/// # Errors
/// If the settings or flags do not fit the run in the folder, if the corpus or a model cannot be used, or if a worker
/// fails for good.
pub fn distill(
    settings: &Settings,
    flags: &Flags,
    signals: &Signals,
    out: &mut dyn Write,
) -> Result<()> {
    let path = run_folder(settings)?;
    signals.begin_job(settings)?;
    let settings = &threads::chosen(settings, &path, signals)?;
    let begun = RunFolder::holds_a_run(&path);
    let (new, restart, shown) = (flags.args.no_resume, flags.args.restart, path.display());
    // Fail before minutes of tokenizing.
    if restart && !begun {
        return Err(anyhow!("there is no run in {shown} to restart"))
            .hint("leave out --restart to start one")
            .usage();
    }
    let goes_on = begun && !new && !restart;
    if goes_on {
        inputs::same_settings(&path, settings)?;
    } else if !begun && flags.args.resume_from.is_some() && flags.fork_of.is_none() {
        return Err(anyhow!("there is no run in {shown} to resume"))
            .hint("leave out --resume-from to start one; add --fork NAME to start one from a checkpoint of another run")
            .usage();
    }
    // Do not replace the inputs of this run, or of the run that it is forked from.
    let extends = goes_on && inputs::extends(&path, settings)?;
    let length = if restart {
        Length::of(settings)
    } else {
        Length::of_run(&path, settings)?
    };
    let outdated = match &flags.fork_of {
        _ if restart => Outdated::AsSet,
        _ if begun && !extends && path.join("summary.json").exists() => Outdated::KeptFor(&path),
        _ if begun => Outdated::NeededBy(&path),
        Some(source) if RunFolder::holds_a_run(source) => Outdated::NeededBy(source),
        _ => Outdated::AsSet,
    };
    let prepared = prepare_run(settings, None, outdated, length, signals)?;
    let folder = open_folder(&path, new)?;
    signals.in_run(folder.path());
    if restart {
        lost::start_over(&folder)?;
    }
    if let Some(source) = &flags.fork_of
        && !RunFolder::holds_a_run(&path)
    {
        signals.begin(Phase::Fork)?;
        fork::fork(&prepared, source, flags.args.resume_from, &folder)?;
    }
    // With `--fork`, the step belongs to the other run.
    let from = flags.args.resume_from.filter(|_| flags.fork_of.is_none());
    if folder.summary().exists() {
        prepared.inputs.check(&folder, settings)?;
        if let Some(step) = from {
            let hint =
                format!("to start a new run from there, pass --fork NAME --resume-from {step}");
            return Err(anyhow!(
                "the run in {shown} is finished: it cannot resume from step {step}"
            ))
            .hint(hint)
            .usage();
        }
        if !extends {
            inputs::same_rates(&path, settings)?;
            signals.run_is_done();
            signals.begin(Phase::Report)?;
            if result::lacks_report(&folder) {
                result::write_report(&folder)?;
            }
            say(&format!(
                "the run in {shown} is already finished; its summary:"
            ));
            return result::print(&ddk_run::read::summary(&path)?, flags.args.json, out);
        }
        result::reopen(&folder)?;
    }
    // Fail before the preliminary runs of a method that has some.
    lost::refuse_if_saved(&folder)?;
    bind(&prepared, &folder)?;
    if let Some(step) = from {
        go_back(&folder, step)?;
    }
    session::in_one(settings, &folder, signals, |session| {
        run_phases(prepared, &folder, session, flags)
    })?;
    result::print(&ddk_run::read::summary(&path)?, flags.args.json, out)
}

/// Runs the preliminary runs, if the method has any, and then the run itself.
fn run_phases(
    mut prepared: Prepared,
    folder: &RunFolder,
    session: &mut Session,
    flags: &Flags,
) -> Result<()> {
    let settings = &prepared.settings;
    if settings.mixture.policy == MixturePolicy::Doremi && !lost::has_checkpoints(folder)? {
        let (domains, steps) = (&prepared.plan.domains, prepared.length.steps);
        let weights = doremi::phases(settings, domains, steps, flags.reloads, session)?;
        prepared.doremi = Some(weights);
    }
    if settings.objective.name == ObjectiveName::Ted {
        ted::first_stage(settings, folder, flags.reloads, session)?;
    }
    session.signals.in_run(folder.path());
    run_to_end(prepared, folder, session, flags)
}

/// Returns whether the run of these settings is done.
///
/// # Errors
/// If the settings name no run folder, if its run had other settings, or if its files cannot be read.
pub fn is_done(settings: &Settings) -> Result<bool> {
    let path = run_folder(settings)?;
    if !path.join("summary.json").exists() {
        return Ok(false);
    }
    inputs::same_settings(&path, settings)?;
    if inputs::extends(&path, settings)? {
        return Ok(false);
    }
    inputs::same_rates(&path, settings)?;
    Ok(true)
}
