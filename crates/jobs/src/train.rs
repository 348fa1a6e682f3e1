//! `ddk train`: a distillation from configuration to exported student.

mod changes;
pub(crate) mod course;
pub(crate) mod filters;
mod fork;
pub(crate) mod inputs;
pub(crate) mod labels;
pub(crate) mod options;
mod phases;
mod policy;
pub(crate) mod prepared;
mod result;
pub(crate) mod run;
mod session;
pub(crate) mod threads;
mod workers;

use std::{io::Write, path::Path};

use anyhow::{Result, anyhow};
use ddk_run::{CheckpointStore, RunFileError, RunFolder};
use ddk_settings::{MixturePolicy, ObjectiveName, Settings};

use self::{
    options::Length,
    prepared::{Prepared, prepare_run},
    run::{bind, open_folder, run_to_end},
    session::Session,
};
use crate::{
    args,
    bench::teacher_is_here,
    checkpoints::{self, go_back},
    config::{self, run_folder},
    display,
    hint::{Hint, must_hold, usage, with_hint},
    hub::{self, Revisions, Wanted},
    phase::Phase,
    planned,
    prepare::Outdated,
    progress::say,
    ranks::{self, Ranks, restarts_by_torchrun},
    signals::Signals,
};

/// Distills according to the command line. Resumes if the run folder holds a run.
///
/// # Errors
/// If the settings are wrong or do not match the run, or if a worker fails for good.
pub fn run(args: &args::Train, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let mut args = args.clone();
    let sets = &mut args.config.set;
    if let Some(file) = &args.metrics_file {
        let file = toml::Value::String(file.display().to_string());
        sets.push(format!("telemetry.metrics_file={file}"));
    }
    let mut settings = config::load(&args.config)?.settings;
    planned::is_made(&settings, &args.config)?;
    args.reloads = true;
    if let Some(name) = &args.fork {
        args.fork_of = Some(run_folder(&settings)?);
        // Treat it like `--set`, so that it is checked like any other name.
        let name = toml::Value::String(name.clone());
        args.config.set.push(format!("run.name={name}"));
        settings = config::load(&args.config)?.settings;
    }
    distill(&settings, &args, signals, out)
}

/// Distills according to the settings. Resumes if the run folder holds a checkpoint.
///
/// # Errors
/// If the settings or arguments do not fit the run in the folder, if the corpus or a model cannot be used, or if a
/// worker fails for good.
pub fn distill(
    settings: &Settings,
    args: &args::Train,
    signals: &Signals,
    out: &mut dyn Write,
) -> Result<()> {
    let path = run_folder(settings)?;
    signals.begin_job(settings)?;
    let ranks = Ranks::join(settings)?;
    not_at_each_restart(args)?;
    if ranks.is_none() && !args.no_resume {
        not_in_use(&path)?;
    }
    let serves = !is_over(settings, args, &path);
    let has_run = session::in_one(settings, &path, serves, signals, ranks.clone(), |session| {
        let opened = Ranks::in_turn(
            ranks.as_deref(),
            || open(settings, args, session, ranks.as_deref(), out),
            || follow(settings, session, ranks.as_deref()),
        )?;
        let Some((prepared, folder)) = opened else {
            return Ok(false);
        };
        session.enter(&folder)?;
        run_phases(prepared, &folder, session, args)?;
        Ok(true)
    })?;
    if !has_run {
        return Ok(());
    }
    // torchrun waits only 300 seconds after the first process has ended, and an export may take longer.
    Ranks::in_turn(ranks.as_deref(), || Ok(None), || Ok(()))?;
    if !ranks::leads(ranks.as_ref()) {
        return Ok(());
    }
    display::clear();
    result::print(&ddk_run::read::summary(&path)?, args.json, out)?;
    result::say_next(&path, settings, args);
    Ok(())
}

/// Refuses a run that another process works on, before anything else happens in its name.
fn not_in_use(path: &Path) -> Result<()> {
    let Some(holder) = RunFolder::holder(path) else {
        return Ok(());
    };
    let locked = RunFileError::Locked {
        folder: path.to_owned(),
        holder: holder.to_string(),
    };
    Err(locked).hint("choose another run.name or run.output_dir")
}

/// Returns whether the run is finished, so that only its summary will be printed.
fn is_over(settings: &Settings, args: &args::Train, path: &Path) -> bool {
    let is_finished = RunFolder::holds_a_run(path) && path.join("summary.json").exists();
    is_finished && !args.restart && !inputs::extends(path, settings).unwrap_or(false)
}

/// Refuses options that must take effect only once, because `torchrun` repeats them at each restart.
fn not_at_each_restart(args: &args::Train) -> Result<()> {
    let options = [
        ("--restart", args.restart),
        ("--no-resume", args.no_resume),
        (
            "--resume-from",
            args.resume_from.is_some() && args.fork.is_none(),
        ),
    ];
    let given = options.into_iter().find(|(_, is_given)| *is_given);
    let Some((option, _)) = given.filter(|_| restarts_by_torchrun()) else {
        return Ok(());
    };
    Err(anyhow!("torchrun would repeat {option} at each restart"))
        .hint(format!(
            "pass {option} once with --max-restarts 0, stop the run after its first checkpoint, and start it again \
             without {option}"
        ))
        .usage()
}

/// What a run needs of the names in its settings.
const ALL: [Wanted<'_>; 2] = [Wanted::Models, Wanted::Corpus];

/// Finds what the settings name on the Hub: the commits of the run in this folder, or of the run that it is forked
/// from.
fn located(
    settings: &Settings,
    args: &args::Train,
    path: &Path,
    signals: &Signals,
) -> Result<Settings> {
    let mut pinned = Revisions::new();
    if !args.restart {
        let source = args.fork_of.as_deref();
        for run in source.into_iter().chain([path]) {
            pinned.extend(hub::revisions_of(run)?);
        }
    }
    hub::located(settings, &ALL, &pinned, Some(signals))
}

/// Opens the run's folder after everything that changes it. Returns none if the run is already finished, after printing
/// its summary.
fn open(
    settings: &Settings,
    args: &args::Train,
    session: &Session,
    ranks: Option<&Ranks>,
    out: &mut dyn Write,
) -> Result<Option<(Prepared, RunFolder)>> {
    let signals = &session.signals;
    let path = run_folder(settings)?;
    if args.serial_baseline > 0 {
        teacher_is_here(settings, "--serial-baseline")?;
    }
    let settings = &located(settings, args, &path, signals)?;
    let settings = &threads::chosen(settings, &path, signals, ranks)?;
    let begun = RunFolder::holds_a_run(&path);
    let (new, restart, shown) = (args.no_resume, args.restart, path.display());
    // With `--fork`, the step belongs to the other run.
    let from = args.resume_from.filter(|_| args.fork_of.is_none());
    // Fail before minutes of tokenizing.
    if restart {
        must_hold(" to restart", &path, "leave out --restart to start one")?;
    } else if from.is_some() {
        let hint = "leave out --resume-from to start one; add --fork NAME to start one from a checkpoint of another \
                    run";
        must_hold(" to resume", &path, hint)?;
    }
    let goes_on = begun && !new && !restart;
    if goes_on {
        inputs::same_settings(&path, settings)?;
    }
    // Do not replace the inputs of this run, or of the run that it is forked from.
    let extends = goes_on && inputs::extends(&path, settings)?;
    let length = if restart {
        Length::of(settings)
    } else {
        Length::of_run(&path, settings)?
    };
    let outdated = match &args.fork_of {
        _ if restart => Outdated::AsSet,
        _ if begun && !extends && path.join("summary.json").exists() => Outdated::KeptFor(&path),
        _ if begun => Outdated::NeededBy(&path),
        Some(source) if RunFolder::holds_a_run(source) => Outdated::NeededBy(source),
        _ => Outdated::AsSet,
    };
    let prepared = prepare_run(settings, None, outdated, length, session)?;
    let forked = match &args.fork_of {
        Some(source) if restart || !begun => Some(fork::find(&prepared, source, args.resume_from)?),
        _ => None,
    };
    let folder = open_folder(&path, new, ranks)?;
    signals.in_run(folder.path());
    if restart {
        checkpoints::start_over(&folder)?;
    }
    if let Some(start) = forked.filter(|_| !RunFolder::holds_a_run(&path)) {
        signals.begin(Phase::Fork)?;
        fork::write(&prepared, &start, &folder)?;
    }
    if folder.summary().exists() {
        prepared.inputs.check(&folder, settings)?;
        if let Some(step) = from {
            checkpoints::checkpoint_of(&CheckpointStore::look(&folder.checkpoints()), step)?;
            let error =
                anyhow!("the run in {shown} is finished: it cannot resume from step {step}");
            let hint = "to start a new run from there, pass --fork NAME --resume-from";
            return Err(usage(with_hint(error, format!("{hint} {step}"))));
        }
        if !extends {
            inputs::same_rates(&path, settings)?;
            signals.run_is_done();
            signals.begin(Phase::Report)?;
            // The process may have ended after it wrote the summary.
            if !path.join(result::REPORT).exists() {
                result::write_report(&folder)?;
            }
            display::clear();
            say(&format!(
                "the run in {shown} is already finished; its summary:"
            ));
            result::print(&ddk_run::read::summary(&path)?, args.json, out)?;
            return Ok(None);
        }
        result::reopen(&folder)?;
    }
    // Fail before the preliminary runs of a method that has some.
    checkpoints::refuse_if_saved(&folder)?;
    bind(&prepared, &folder)?;
    if let Some(step) = from {
        go_back(&folder, step)?;
    }
    Ok(Some((prepared, folder)))
}

/// Opens the run's folder on a rank that only reads it, after rank 0 has opened it.
fn follow(
    settings: &Settings,
    session: &Session,
    ranks: Option<&Ranks>,
) -> Result<(Prepared, RunFolder)> {
    let path = run_folder(settings)?;
    // Rank 0 has recorded the commits.
    let pinned = hub::revisions_of(&path)?;
    let settings = &hub::located(settings, &ALL, &pinned, Some(&session.signals))?;
    let settings = threads::chosen(settings, &path, &session.signals, ranks)?;
    let length = Length::of_run(&path, &settings)?;
    let prepared = prepare_run(&settings, None, Outdated::NeededBy(&path), length, session)?;
    Ok((prepared, RunFolder::follow(&path)))
}

/// Runs the preliminary runs, if the method has any, and then the run itself.
fn run_phases(
    mut prepared: Prepared,
    folder: &RunFolder,
    session: &mut Session,
    args: &args::Train,
) -> Result<()> {
    let settings = &prepared.models.settings;
    if settings.mixture.policy == MixturePolicy::Doremi && !checkpoints::are_in(folder)? {
        prepared.doremi = Some(phases::doremi(&prepared, args.reloads, session)?);
    }
    if settings.objective.name == ObjectiveName::Ted {
        phases::ted(settings, folder, args.reloads, session)?;
    }
    if ranks::leads(session.ranks.as_ref()) {
        session.signals.in_run(folder.path());
    }
    run_to_end(prepared, folder, session, args)
}

/// Returns whether the folder holds a finished run of these settings.
///
/// # Errors
/// If its run had other settings, or if its files cannot be read.
pub fn is_done(path: &Path, settings: &Settings) -> Result<bool> {
    if !path.join("summary.json").exists() {
        return Ok(false);
    }
    inputs::same_settings(path, settings)?;
    if inputs::extends(path, settings)? {
        return Ok(false);
    }
    inputs::same_rates(path, settings)?;
    Ok(true)
}
