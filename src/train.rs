//! `ddk train`: a distillation from configuration to exported student.

mod doremi;
mod fork;
mod healing;
mod inputs;
mod lost;
mod options;
mod plan;
mod policy;
mod reload;
mod result;
mod schedule;
mod session;
mod ted;
mod threads;
mod workers;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use ddk_actors::{End, RunPlan};
use ddk_engine::StudentOptions;
use ddk_mixture::Policy;
use ddk_run::{CheckpointStore, RunFolder};
use ddk_settings::{MixturePolicy, ObjectiveName, Settings};
use ddk_telemetry::Stage;

pub use self::inputs::{Inputs, fits};
pub use self::options::{most_steps, of_student as student_options};
pub use self::ted::layer_pairs;
use self::{doremi::Phases, schedule::Length, session::Session, workers::work};
use crate::{
    cli, config,
    faults::Faults,
    hint::Hint,
    phase::Phase,
    prepare::{self, Corpus, Outdated},
    progress::say,
    serial,
    signals::{Signal, Signals},
    wiring::{self, Evaluation, ModelFolders},
};

pub fn run(args: &cli::Train, signals: &Signals, out: &mut dyn Write) -> Result<ExitCode> {
    let mut source = args.config.clone();
    if let Some(file) = &args.metrics_file {
        let file = toml::Value::String(file.display().to_string());
        source.set.set.push(format!("telemetry.file={file}"));
    }
    let mut settings = config::load(&source)?.settings;
    let fork_of = match &args.fork {
        Some(name) => {
            let old = required(settings.run.name, "run.name")?;
            // As if it had been set, so that it is checked as any name.
            let name = toml::Value::String(name.clone());
            source.set.set.push(format!("run.name={name}"));
            settings = config::load(&source)?.settings;
            Some(settings.run.folder.join(old))
        }
        None => None,
    };
    distil(
        &settings,
        &Flags {
            new: args.new,
            restart: args.restart,
            reload: Some(source),
            fork_of,
            from: args.from,
            json: args.json,
            serial_steps: args.serial,
        },
        signals,
        out,
    )
}

/// What the command line adds to the settings.
pub struct Flags {
    /// Refuse a run folder that exists.
    pub new: bool,
    /// Set aside what the run has made, and start over.
    pub restart: bool,
    /// Where settings are read again from at SIGHUP.
    pub reload: Option<cli::ConfigArgs>,
    /// The folder of the run to fork, where the run is new.
    pub fork_of: Option<PathBuf>,
    /// Go on from this checkpoint instead of the newest.
    pub from: Option<u64>,
    /// Print the summary as JSON.
    pub json: bool,
    /// Steps to measure one part after the other once the run is done.
    pub serial_steps: u64,
}

/// Everything that is known before the first worker starts.
struct Prepared<'a> {
    settings: &'a Settings,
    folders: ModelFolders,
    corpus: Corpus,
    inputs: Inputs,
    length: Length,
    evaluation: Evaluation,
    options: StudentOptions,
    plan: RunPlan,
    /// The mean weights of DoReMi's proxy, where this run is DoReMi's third phase and its proxy has run.
    doremi: Option<Vec<f64>>,
    faults: Arc<Faults>,
}

impl Prepared<'_> {
    /// The policy that a new run begins with.
    fn policy(&self) -> Result<Box<dyn Policy>> {
        let ground = policy::Ground {
            domains: &self.plan.domains,
            natural: &self.plan.natural,
            vocabulary: self.options.vocabulary,
            doremi: self.doremi.as_deref(),
        };
        policy::of_settings(&self.settings.mixture, &ground)
    }
}

/// How a run ended that could not fail.
enum Ran {
    /// It is done and summed up.
    Finished,
    /// By a signal; the program's exit code.
    Stopped(ExitCode),
}

/// Distils as the settings say; goes on where the run's folder holds a checkpoint.
pub fn distil(
    settings: &Settings,
    flags: &Flags,
    signals: &Signals,
    out: &mut dyn Write,
) -> Result<ExitCode> {
    let name = required(settings.run.name.clone(), "run.name")?;
    let path = settings.run.folder.join(&name);
    let faults = Faults::parse(&settings.faults.plan)?;
    let settings = &threads::chosen(settings, &path, signals, &faults)?;
    let begun = RunFolder::holds_a_run(&path);
    // Said before minutes of tokenizing.
    if flags.restart && !begun {
        return Err(anyhow!(
            "there is no run in {} to start over",
            path.display()
        ))
        .hint("leave --restart out to start one")
        .usage();
    }
    if begun && !flags.new && !flags.restart {
        inputs::same_settings(&path, settings)?;
    } else if !begun && flags.from.is_some() && flags.fork_of.is_none() {
        return Err(anyhow!("there is no run in {} to go on from", path.display()))
            .hint("leave --from out to start one; --fork NAME --from STEP starts one from another's checkpoint")
            .usage();
    }
    // What a run was made from is not replaced: this one, or the one that it is forked from.
    let goes_on = begun && !flags.new && !flags.restart;
    let extends = goes_on && inputs::extends(&path, settings)?;
    let length = match flags.restart {
        true => Length::of(settings),
        false => Length::of_run(&path, settings)?,
    };
    let outdated = match &flags.fork_of {
        _ if flags.restart => Outdated::AsSet,
        _ if begun && !extends && path.join("summary.json").exists() => Outdated::KeptFor(&path),
        _ if begun => Outdated::NeededBy(&path),
        Some(source) if RunFolder::holds_a_run(source) => Outdated::NeededBy(source),
        _ => Outdated::AsSet,
    };
    let mut prepared = prepare_run(settings, outdated, length, signals, &faults)?;
    let folder = open_folder(&path, flags.new)?;
    signals.in_run(folder.path());
    if flags.restart {
        lost::start_over(&folder)?;
    }
    let forks = flags
        .fork_of
        .as_deref()
        .filter(|_| !RunFolder::holds_a_run(&path));
    if let Some(source) = forks {
        signals.begin(Phase::Fork, &faults)?;
        fork::fork(&prepared, source, flags.from, &folder)?;
    }
    // The step to fork from is one of the other run's.
    let from = flags.from.filter(|_| flags.fork_of.is_none());
    if folder.summary().exists() {
        prepared.inputs.check(&folder, settings)?;
        if let Some(step) = from {
            return Err(anyhow!(
                "the run in {} is done: it does not go on from step {step}",
                path.display()
            ))
            .hint(format!(
                "for a new run from there: --fork NAME --from {step}"
            ))
            .usage();
        }
        if !extends {
            signals.run_is_done();
            signals.begin(Phase::Report, &faults)?;
            if result::lacks_report(&folder) {
                result::write_report(&folder)?;
            }
            say(&format!(
                "the run in {} is done already; its summary:",
                path.display()
            ));
            return result::print(&ddk_run::read::summary(&path)?, flags.json, out);
        }
        result::reopen(&folder)?;
    }
    // Said before the phases of a run that has some.
    if !lost::has_checkpoints(&folder)? {
        lost::refuse_if_saved(&folder)?;
    }
    prepared.length.record(&folder)?;
    prepared.inputs.bind(&folder, settings)?;
    start_log(&folder)?;
    copy_quarantine(&prepared, &folder)?;
    if let Some(step) = from {
        go_back(&folder, step)?;
    }
    let mut session = Session::start(settings, &folder, signals)?;
    let ran = in_session(&mut prepared, &folder, &mut session, flags);
    session.end(match &ran {
        Ok(Ran::Finished) => Stage::Finished,
        Ok(Ran::Stopped(_)) => Stage::Stopped,
        Err(_) => Stage::Failed,
    });
    match ran? {
        Ran::Finished => result::print(&ddk_run::read::summary(&path)?, flags.json, out),
        Ran::Stopped(code) => Ok(code),
    }
}

/// The phases before the run, where its method has some, and the run itself.
fn in_session(
    prepared: &mut Prepared<'_>,
    folder: &RunFolder,
    session: &mut Session,
    flags: &Flags,
) -> Result<Ran> {
    let settings = prepared.settings;
    if settings.mixture.policy == MixturePolicy::Doremi && !lost::has_checkpoints(folder)? {
        let reloads = flags.reload.is_some();
        let (domains, steps) = (&prepared.plan.domains, prepared.length.steps);
        match doremi::phases(settings, domains, steps, reloads, session)? {
            Phases::Done(weights) => prepared.doremi = Some(weights),
            Phases::Stopped(code) => return Ok(Ran::Stopped(code)),
        }
    }
    if settings.objective.name == ObjectiveName::Ted {
        let reloads = flags.reload.is_some();
        if let Some(code) = ted::first_stage(settings, folder, reloads, session)? {
            return Ok(Ran::Stopped(code));
        }
    }
    session.signals.in_run(folder.path());
    run_to_end(prepared, folder, session, flags)
}

/// Whether the run of these settings is done; a folder whose run had other settings is refused.
pub fn is_done(settings: &Settings) -> Result<bool> {
    let name = required(settings.run.name.clone(), "run.name")?;
    let path = settings.run.folder.join(&name);
    if !path.join("summary.json").exists() {
        return Ok(false);
    }
    inputs::same_settings(&path, settings)?;
    Ok(!inputs::extends(&path, settings)?)
}

/// A run that another one begins with, in a folder within its own; goes on where it was, and is left alone
/// once it is done.
fn phase(settings: &Settings, session: &mut Session) -> Result<Ran> {
    let name = required(settings.run.name.clone(), "run.name")?;
    let path = settings.run.folder.join(&name);
    if path.join("summary.json").exists() {
        say(&format!("the run in {} is done already", path.display()));
        return Ok(Ran::Finished);
    }
    // The run that it is for reads the same corpus.
    let outdated = match settings.run.folder.parent() {
        Some(parent) => Outdated::NeededBy(parent),
        None => Outdated::AsSet,
    };
    session.begin_phase();
    let faults = Faults::parse(&settings.faults.plan)?;
    let length = Length::of_run(&path, settings)?;
    let prepared = prepare_run(settings, outdated, length, &session.signals, &faults)?;
    let folder = open_folder(&path, false)?;
    session.signals.in_run(folder.path());
    prepared.length.record(&folder)?;
    prepared.inputs.bind(&folder, settings)?;
    copy_quarantine(&prepared, &folder)?;
    let flags = Flags {
        new: false,
        restart: false,
        reload: None,
        fork_of: None,
        from: None,
        json: false,
        serial_steps: 0,
    };
    let ran = run_to_end(&prepared, &folder, session, &flags)?;
    if matches!(ran, Ran::Finished) {
        // What follows is not this run's.
        session.signals.begin(Phase::Between, &faults)?;
    }
    Ok(ran)
}

fn run_to_end(
    prepared: &Prepared<'_>,
    folder: &RunFolder,
    session: &mut Session,
    flags: &Flags,
) -> Result<Ran> {
    let began = Instant::now();
    let ended = work(session, prepared, folder, flags.reload.as_ref())?;
    let step = match &ended.outcome {
        Some(outcome) if outcome.end != End::Stopped => None,
        Some(outcome) => Some(outcome.step),
        None => Some(last_checkpoint(folder)?),
    };
    if let Some(step) = step {
        let signal = ended.signal.unwrap_or(Signal::Terminate);
        let code = stopped(signal, step, folder.path(), flags.from.is_some());
        return Ok(Ran::Stopped(code));
    }
    let Some(outcome) = &ended.outcome else {
        return Err(anyhow!("the run ended without a result"));
    };
    let finished = result::finish(
        prepared,
        folder,
        &session.signals,
        outcome,
        ended.seconds_before,
        began,
        flags.serial_steps,
    );
    if let Err(error) = &finished
        && let Err(unwritten) = ddk_run::append_event(folder.path(), "failed", &error.to_string())
    {
        tracing::error!(%error, %unwritten, "the run failed");
    }
    finished?;
    Ok(Ran::Finished)
}

/// Says where a run was stopped. `from`: whether `--from` chose where it went on.
fn stopped(signal: Signal, step: u64, path: &Path, from: bool) -> ExitCode {
    let when = match step {
        0 => "before its first step".to_owned(),
        step => format!("after step {step}"),
    };
    let without = if from { " without --from" } else { "" };
    say(&format!(
        "stopped {when}, saved; the same command{without} goes on from there ({})",
        path.display()
    ));
    ExitCode::from(signal.exit_code())
}

/// The step of the newest checkpoint; 0 where there is none.
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

pub fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value
        .ok_or_else(|| anyhow!("`{key}` is missing: training needs it"))
        .usage()
}

/// Sets the checkpoints after `step` aside, so that the run goes on from there.
fn go_back(folder: &RunFolder, step: u64) -> Result<()> {
    let store = CheckpointStore::look(&folder.checkpoints());
    checkpoint_of(&store, step)?;
    for newer in store.set_aside_after(step)? {
        say(&format!("the checkpoint of step {newer} is set aside"));
    }
    Ok(())
}

/// The checkpoint of a step, verified.
pub fn checkpoint_of(store: &CheckpointStore, step: u64) -> Result<PathBuf> {
    let steps = store.steps()?;
    if !steps.contains(&step) {
        let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
        return Err(anyhow!("the run has no checkpoint of step {step}"))
            .hint(format!("there are: {}", steps.join(", ")))
            .usage();
    }
    let entry = store.entry(step);
    match entry.status {
        Ok(_) => Ok(entry.path),
        Err(reason) => Err(anyhow!("{} is damaged: {reason}", entry.path.display())),
    }
}

fn open_folder(path: &Path, new: bool) -> Result<RunFolder> {
    if new {
        RunFolder::create(path)
            .hint("leave --new out to go on with that run, or choose another run.name")
    } else {
        RunFolder::open(path).hint("choose another run.name, or run.folder")
    }
}

/// Loads what is small and checks what belongs together, before anything is written.
fn prepare_run<'a>(
    settings: &'a Settings,
    outdated: Outdated<'_>,
    length: Length,
    signals: &Signals,
    faults: &Arc<Faults>,
) -> Result<Prepared<'a>> {
    let folders = ModelFolders::new(
        required(settings.teacher.model.clone(), "teacher.model")?,
        required(settings.student.model.clone(), "student.model")?,
    );
    let limits = (
        settings.run.max_steps,
        settings.run.max_intervals,
        settings.run.max_tokens,
    );
    if limits == (None, None, None) {
        return Err(anyhow!(
            "the run has no end: none of run.max_steps, run.max_intervals and run.max_tokens is set"
        ))
        .usage();
    }
    signals.begin(Phase::Prepare, faults)?;
    // The models first: what is wrong with them is said before minutes of tokenizing.
    inputs::check_tokenizers(settings, &folders)?;
    let filters = ted::filters(settings, &folders)?;
    let corpus = prepare::open(settings, outdated)?;
    let vocabulary = corpus.tokenizer.vocabulary() as i64;
    signals.begin(Phase::Hash, faults)?;
    let inputs = Inputs::of(
        &folders,
        &corpus,
        vocabulary,
        settings.corpus.sequence_length,
    )?;
    plan::room_for_a_step(settings, &corpus)?;
    let mut options = student_options(settings, vocabulary, filters)?;
    options.schedule.total_steps = length.steps;
    let evaluation = Evaluation {
        validation: Arc::new(prepare::validation(&corpus)?),
        batch_rows: settings.evaluation.batch_rows,
        vocabulary,
        chunk: options.chunk,
    };
    let flops = wiring::flop_counter(&folders, &options)?;
    let plan = RunPlan {
        evaluation_flops: flops.student_evaluation(&evaluation.validation),
        teacher_evaluation_flops: flops.teacher_evaluation(&evaluation.validation),
        ..plan::of_settings(settings, &corpus, &length)
    };
    Ok(Prepared {
        settings,
        folders,
        corpus,
        inputs,
        length,
        evaluation,
        options,
        plan,
        doremi: None,
        faults: Arc::clone(faults),
    })
}

/// Everything that `tracing` is told goes to the run's own log.
fn start_log(folder: &RunFolder) -> Result<()> {
    let path = folder.log();
    let file = fs::File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,ractor=warn"));
    // A second run of one process goes on in the first one's log.
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(filter)
        .with_writer(Mutex::new(file))
        .try_init();
    Ok(())
}

/// The records that could not be used are part of what a run was.
fn copy_quarantine(prepared: &Prepared<'_>, folder: &RunFolder) -> Result<()> {
    let mut all = Vec::new();
    for report in &prepared.corpus.reports {
        let path = prepared
            .settings
            .corpus
            .folder
            .join(&report.domain)
            .join(ddk_corpus::QUARANTINE_FILE);
        all.extend(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    ddk_run::write_atomically(&folder.path().join(ddk_corpus::QUARANTINE_FILE), &all)?;
    Ok(())
}

/// Steps one part after the other, for comparison, on the run's own rows.
fn measure_serial(prepared: &Prepared<'_>, steps: u64) -> Result<Option<ddk_run::records::Serial>> {
    if steps == 0 {
        return Ok(None);
    }
    serial::measure(
        prepared.settings,
        &prepared.folders,
        &prepared.options,
        &prepared.corpus,
        steps,
    )
    .map(Some)
}
