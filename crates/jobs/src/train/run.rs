//! Runs one run from its first step to its result: the requested run, or a preliminary one.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result};
use ddk_actors::{End, Outcome};
use ddk_run::{CheckpointStore, RunFileError, RunFolder, records::EventKind, view::State};
use ddk_settings::{ExportedStudent, Run, Samples, Settings};

use super::{
    changes, follow,
    options::Length,
    prepared::{Destination, Prepared, prepare_run},
    result,
    session::{self, Session},
    workers::work,
};
use crate::{
    args,
    config::run_folder,
    hint::{Ended, Hint},
    phase::Phase,
    prepare::{Outdated, quarantine},
    progress::say,
    ranks::{self, Ranks, under_torchrun},
    signals::{Signal, Signals},
};

/// How long rank 0 waits for the lock of the run's folder.
const LOCK_PATIENCE: Duration = Duration::from_secs(120);

/// Runs a preliminary run, in a folder within the main run's. Resumes it if it was interrupted, and leaves a
/// finished one alone.
pub(super) fn phase(settings: &Settings, session: &mut Session) -> Result<()> {
    let path = run_folder(settings)?;
    if path.join("summary.json").exists() {
        let shown = path.display();
        say(&format!("the run in {shown} is already finished"));
        return Ok(());
    }
    session.board.set_state(State::Starting);
    // The main run reads the same corpus.
    let reader = settings.run.output_dir.parent();
    let begun = Ranks::in_turn(
        session.ranks.as_deref(),
        || begin(settings, None, reader, session).map(Some),
        || follow(settings, session, session.ranks.as_deref()),
    )?;
    let Some((prepared, folder)) = begun else {
        return Ok(());
    };
    run_to_end(prepared, &folder, session, &args::Train::default())?;
    // The main run reads the files that rank 0 has written now.
    Ranks::in_turn(session.ranks.as_deref(), || Ok(Some(())), || Ok(()))?;
    if !ranks::leads(session.ranks.as_ref()) {
        return Ok(());
    }
    // Signals no longer belong to this run.
    session.signals.begin(Phase::Between)
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
    let reader = Some(&*path).filter(|path| RunFolder::holds_a_run(path));
    session::in_one(settings, &path, true, signals, None, |session| {
        let (prepared, folder) = begin(settings, Some(destination), reader, session)?;
        session.enter(&folder)?;
        let _answers = changes::not_yet(reloads, &session.runtime)?;
        run_to_end(prepared, &folder, session, &args::Train::default())
    })?;
    signals.begin(Phase::Leave)
}

/// Prepares a run and opens its folder. `reader`: a run that was trained on the corpus as prepared.
fn begin(
    settings: &Settings,
    destination: Option<Destination>,
    reader: Option<&Path>,
    session: &Session,
) -> Result<(Prepared, RunFolder)> {
    let path = run_folder(settings)?;
    let outdated = reader.map_or(Outdated::AsSet, Outdated::NeededBy);
    let length = Length::of_run(&path, settings)?;
    let prepared = prepare_run(settings, destination, outdated, length, session)?;
    let folder = open_folder(&path, false, None)?;
    session.signals.in_run(folder.path());
    bind(&prepared, &folder)?;
    Ok((prepared, folder))
}

/// Writes the inputs of a run to its folder, or compares them with those already there.
pub(super) fn bind(prepared: &Prepared, folder: &RunFolder) -> Result<()> {
    prepared.length.record(folder)?;
    let settings = &prepared.models.settings;
    prepared.inputs.bind(folder, settings)?;
    // The list of unusable records belongs to the run's inputs.
    let mut all = Vec::new();
    for report in &prepared.corpus.reports {
        let path = quarantine(&settings.corpus.dir, &report.domain);
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
        patience: None,
        min_improvement: 0.0,
        export: ExportedStudent::Last,
        ..run.run
    };
    run.lr_scheduler.total_steps = None;
    run.evaluation.interval = None;
    run.checkpoint.keep_best = false;
    run.samples = Samples::default();
    run.mixture.doremi_model = None;
    run.mixture.doremi_steps = None;
    run
}

pub(super) fn run_to_end(
    prepared: Prepared,
    folder: &RunFolder,
    session: &mut Session,
    args: &args::Train,
) -> Result<()> {
    let began = Instant::now();
    let prepared = Arc::new(prepared);
    let reload = args.reloads.then_some(&args.config);
    let (outcome, seconds_before) = work(session, &prepared, folder, reload)?;
    let outcome = match &outcome {
        Some(outcome) if outcome.end != End::Stopped => outcome,
        stopped => return Err(ended(stopped.as_ref(), folder, session, args)?),
    };
    if !ranks::leads(session.ranks.as_ref()) {
        return Ok(());
    }
    let finished = result::finish(
        &prepared,
        folder,
        &session.signals,
        outcome,
        seconds_before,
        began,
        args.serial_baseline,
    );
    if let Err(error) = &finished
        && let Err(unwritten) =
            ddk_run::append_event(folder.path(), EventKind::Failed, &error.to_string())
    {
        tracing::error!(%error, %unwritten, "the run failed");
    }
    finished
}

/// Reports where a run was stopped. Returns the error that ends the command.
fn ended(
    outcome: Option<&Outcome>,
    folder: &RunFolder,
    session: &Session,
    args: &args::Train,
) -> Result<Error> {
    let step = outcome.map_or_else(|| last_checkpoint(folder), |outcome| Ok(outcome.step))?;
    let from = args.resume_from;
    let without = from.map_or("", |_| " without --resume-from");
    let shown = folder.path().display();
    say(&match step {
        0 => format!(
            "stopped before its first step, nothing to save; the same command{without} starts the run again ({shown})"
        ),
        step => format!(
            "stopped after step {step}, saved; the same command{without} resumes from there ({shown})"
        ),
    });
    // To torchrun, any other code is a failure after which it starts the run again.
    if under_torchrun() && !session.signals.is_signaled() {
        return Ok(Ended(0).into());
    }
    let signal = session.signals.came();
    Ok(signal.unwrap_or(Signal::Terminate).ended())
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

/// Opens the run's folder. With several ranks, waits a while for its lock: if the machine of rank 0 is lost, a network
/// file system frees the lock only after some time.
pub(crate) fn open_folder(path: &Path, new: bool, ranks: Option<&Ranks>) -> Result<RunFolder> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        let opened = if new {
            RunFolder::create(path)
        } else {
            RunFolder::open(path)
        };
        match opened {
            Err(RunFileError::Locked { holder, .. })
                if ranks.is_some() && Instant::now() < until =>
            {
                let shown = path.display();
                say(&format!(
                    "waiting for the lock of {shown}, which process {holder} has"
                ));
                std::thread::sleep(Duration::from_secs(5));
            }
            opened if new => {
                let is_there = matches!(opened, Err(RunFileError::Exists(_)));
                let opened = opened
                    .hint("leave out --no-resume to resume that run, or choose another run.name");
                return if is_there { opened.usage() } else { opened };
            }
            opened => return opened.hint("choose another run.name or run.output_dir"),
        }
    }
}
