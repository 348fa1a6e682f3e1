//! Runs one run from its first step to its result: the requested run, or a preliminary one.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use ddk_actors::End;
use ddk_run::{CheckpointStore, RunFolder, records::EventKind};
use ddk_settings::{ExportedStudent, Run, Settings};

use super::{
    lost,
    prepared::{Destination, Prepared, prepare_run},
    result,
    schedule::Length,
    session::{self, Session},
    workers::work,
};
use crate::{
    args,
    config::run_folder,
    hint::Hint,
    phase::Phase,
    prepare::{Outdated, quarantine},
    progress::say,
    signals::{Signal, Signals},
};

/// What the command line adds to the settings.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The arguments as given.
    pub args: args::Train,
    /// Whether SIGHUP reloads the settings.
    pub reloads: bool,
    /// The folder of the run to fork, with `--fork`.
    pub fork_of: Option<PathBuf>,
}

/// Runs a preliminary run, in a folder within the main run's. Resumes it if it was interrupted, and leaves a
/// finished one alone.
pub(super) fn phase(settings: &Settings, session: &mut Session) -> Result<()> {
    let path = run_folder(settings)?;
    if path.join("summary.json").exists() {
        say(&format!(
            "the run in {} is already finished",
            path.display()
        ));
        return Ok(());
    }
    // The main run reads the same corpus.
    let outdated = match settings.run.output_dir.parent() {
        Some(parent) => Outdated::NeededBy(parent),
        None => Outdated::AsSet,
    };
    session.begin_phase();
    let signals = session.signals.clone();
    let (prepared, folder) = begin(settings, None, outdated, &signals)?;
    run_to_end(prepared, &folder, session, &Flags::default())?;
    // Signals no longer belong to this run.
    signals.begin(Phase::Between)
}

/// Runs a stand-alone run without a teacher and exports its student to `destination`. `reloads`: whether to answer
/// SIGHUP.
pub(crate) fn stand_alone(
    settings: &Settings,
    destination: Destination,
    reloads: bool,
    signals: &Signals,
) -> Result<()> {
    let path = run_folder(settings)?;
    let outdated = if RunFolder::holds_a_run(&path) {
        Outdated::NeededBy(&path)
    } else {
        Outdated::AsSet
    };
    let (prepared, folder) = begin(settings, Some(destination), outdated, signals)?;
    session::in_one(settings, &folder, signals, |session| {
        let _answers = reloads.then(|| session.answer_hangup()).transpose()?;
        run_to_end(prepared, &folder, session, &Flags::default())
    })?;
    signals.begin(Phase::Leave)
}

/// Prepares a run and opens its folder.
fn begin(
    settings: &Settings,
    destination: Option<Destination>,
    outdated: Outdated<'_>,
    signals: &Signals,
) -> Result<(Prepared, RunFolder)> {
    let path = run_folder(settings)?;
    let length = Length::of_run(&path, settings)?;
    let prepared = prepare_run(settings, destination, outdated, length, signals)?;
    let folder = open_folder(&path, false)?;
    signals.in_run(folder.path());
    bind(&prepared, &folder)?;
    Ok((prepared, folder))
}

/// Writes the inputs of a run to its folder, or compares them with those already there.
pub(super) fn bind(prepared: &Prepared, folder: &RunFolder) -> Result<()> {
    prepared.length.record(folder)?;
    prepared.inputs.bind(folder, &prepared.settings)?;
    // The list of unusable records belongs to the run's inputs.
    let mut all = Vec::new();
    for report in &prepared.corpus.reports {
        let path = quarantine(&prepared.settings.corpus.dir, &report.domain);
        all.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    ddk_files::write_atomically(&folder.path().join(ddk_corpus::QUARANTINE_FILE), &all)?;
    Ok(())
}

/// Returns the settings of a preliminary or stand-alone run: a fixed number of steps, no evaluation on the way, the
/// last student exported.
pub(crate) fn settings_of(settings: &Settings, folder: &Path, name: &str, steps: u64) -> Settings {
    let mut run = settings.clone();
    run.run = Run {
        output_dir: folder.to_owned(),
        name: Some(name.to_owned()),
        max_steps: Some(steps),
        max_intervals: None,
        max_tokens: None,
        target_gap: None,
        export: ExportedStudent::Last,
        ..run.run
    };
    run.lr_scheduler.total_steps = None;
    run.evaluation.interval = None;
    run.checkpoint.keep_best = false;
    run.mixture.doremi_model = None;
    run.mixture.doremi_steps = None;
    run
}

/// Sets aside everything in a run folder.
pub(crate) fn restart(path: &Path) -> Result<()> {
    lost::start_over(&open_folder(path, false)?)
}

pub(super) fn run_to_end(
    prepared: Prepared,
    folder: &RunFolder,
    session: &mut Session,
    flags: &Flags,
) -> Result<()> {
    let began = Instant::now();
    let prepared = Arc::new(prepared);
    let reload = flags.reloads.then_some(&flags.args.config);
    let ended = work(session, &prepared, folder, reload)?;
    let step = match &ended.outcome {
        Some(outcome) if outcome.end != End::Stopped => None,
        Some(outcome) => Some(outcome.step),
        None => Some(last_checkpoint(folder)?),
    };
    if let Some(step) = step {
        let signal = ended.signal.unwrap_or(Signal::Terminate);
        return Err(stopped(
            signal,
            step,
            folder.path(),
            flags.args.resume_from.is_some(),
        ));
    }
    let Some(outcome) = &ended.outcome else {
        return Err(anyhow!("the run ended without a result"));
    };
    let finished = result::finish(
        &prepared,
        folder,
        &session.signals,
        outcome,
        ended.seconds_before,
        began,
        flags.args.serial_baseline,
    );
    if let Err(error) = &finished
        && let Err(unwritten) =
            ddk_run::append_event(folder.path(), EventKind::Failed, &error.to_string())
    {
        tracing::error!(%error, %unwritten, "the run failed");
    }
    finished
}

/// Reports where a run was stopped. `from`: whether `--resume-from` chose where it resumed.
fn stopped(signal: Signal, step: u64, path: &Path, from: bool) -> anyhow::Error {
    let when = match step {
        0 => "before its first step".to_owned(),
        step => format!("after step {step}"),
    };
    let without = if from { " without --resume-from" } else { "" };
    say(&format!(
        "stopped {when}, saved; the same command{without} resumes from there ({})",
        path.display()
    ));
    signal.ended()
}

/// Returns the step of the newest intact checkpoint, or 0 if there is none.
fn last_checkpoint(folder: &RunFolder) -> Result<u64> {
    let path = folder.checkpoints();
    if !path.exists() {
        return Ok(0);
    }
    let store = CheckpointStore::look(&path);
    let steps = store.steps()?.into_iter().rev();
    let mut sound = steps.filter(|step| store.entry(*step).status.is_ok());
    Ok(sound.next().unwrap_or(0))
}

pub(super) fn open_folder(path: &Path, new: bool) -> Result<RunFolder> {
    if new {
        RunFolder::create(path)
            .hint("leave out --no-resume to resume that run, or choose another run.name")
    } else {
        RunFolder::open(path).hint("choose another run.name or run.output_dir")
    }
}
