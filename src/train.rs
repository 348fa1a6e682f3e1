//! `ddk train`: a distillation from configuration to exported student.

mod inputs;
mod result;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use ddk_actors::{End, LoopState, Outcome, Parts, RunError, RunPlan, StopReason, Totals};
use ddk_engine::{AdamWOptions, Schedule, StudentOptions};
use ddk_mixture::{Ddk, FirstInterval, Policy};
use ddk_objective::{Objective, default_chunk};
use ddk_run::{CheckpointStore, Journal, Lengths, Opened, RunFolder};
use ddk_settings::Settings;
use ddk_telemetry::{Board, Recorder, ServeError, Server, metrics};
use ddk_torch::parse_device;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

pub use self::inputs::Inputs;
use crate::{
    cli, config,
    hint::Hint,
    prepare::{self, Corpus},
    progress::{Printer, say},
    serial,
    wiring::{self, Evaluation, ModelFolders},
};

/// Nothing computes longer than this at a stretch; `/livez` says so where something does.
const COMPUTE_LIMIT: Duration = Duration::from_secs(900);

pub fn run(args: &cli::Train, out: &mut dyn Write) -> Result<ExitCode> {
    let settings = config::load(&args.config)?.settings;
    distil(
        &settings,
        &Flags {
            new: args.new,
            json: args.json,
            serial_steps: args.serial,
        },
        out,
    )
}

/// What the command line adds to the settings.
pub struct Flags {
    /// Refuse a run folder that exists.
    pub new: bool,
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
    evaluation: Evaluation,
    options: StudentOptions,
    plan: RunPlan,
}

/// Distils as the settings say; goes on where the run's folder holds a checkpoint.
pub fn distil(settings: &Settings, flags: &Flags, out: &mut dyn Write) -> Result<ExitCode> {
    let began = Instant::now();
    let name = required(settings.run.name.clone(), "run.name")?;
    let path = settings.run.folder.join(&name);
    let prepared = prepare_run(settings)?;
    let folder = open_folder(&path, flags.new)?;
    if folder.summary().exists() {
        prepared.inputs.check(&folder, settings)?;
        say(&format!(
            "the run in {} is done already; its summary:",
            path.display()
        ));
        return result::print(&ddk_run::read::summary(&path)?, flags.json, out);
    }
    prepared.inputs.bind(&folder, settings)?;
    start_log(&folder)?;
    copy_quarantine(&prepared, &folder)?;
    let checkpoints = CheckpointStore::open(&folder.checkpoints(), settings.checkpoint.keep)?;
    let opened = checkpoints.newest::<LoopState>().hint(
        "the run will not begin again at its first step by itself: restore a checkpoint, or give the run another run.name",
    )?;
    let (resume, checkpoint) = announce(opened, &path);
    let lengths = resume
        .as_ref()
        .map_or(Lengths::default(), |state| state.lengths);
    let journal = Arc::new(Journal::open(folder.path(), lengths, settings.run.trace)?);
    let printer = Arc::new(Printer::new(
        settings.log.line_seconds,
        prepared.plan.max_steps,
        resume.as_ref().map_or_else(
            || Totals::new(prepared.plan.domains.len()),
            |state| state.totals.clone(),
        ),
    ));
    let seconds_before = resume
        .as_ref()
        .map_or(0.0, |state| state.totals.run_seconds);
    let ended = work(
        &prepared,
        Work {
            checkpoints,
            journal,
            printer: Arc::clone(&printer),
            resume,
            checkpoint,
        },
    );
    printer.finish();
    let (outcome, signal) = ended?;
    let Some(outcome) = outcome else {
        return Ok(stopped(signal, "before its first step", &path));
    };
    if outcome.end == End::Stopped {
        return Ok(stopped(
            signal,
            &format!("after step {}", outcome.step),
            &path,
        ));
    }
    result::finish(
        &prepared,
        &folder,
        &outcome,
        seconds_before,
        began,
        flags.serial_steps,
    )?;
    result::print(&ddk_run::read::summary(&path)?, flags.json, out)
}

fn stopped(signal: u8, when: &str, path: &std::path::Path) -> ExitCode {
    say(&format!(
        "stopped {when}, saved; the same command goes on from there ({})",
        path.display()
    ));
    ExitCode::from(128 + signal)
}

fn required<T>(value: Option<T>, key: &str) -> Result<T> {
    value
        .ok_or_else(|| anyhow!("`{key}` is missing: training needs it"))
        .usage()
}

fn open_folder(path: &std::path::Path, new: bool) -> Result<RunFolder> {
    if new {
        RunFolder::create(path)
            .hint("leave --new out to go on with that run, or choose another run.name")
    } else {
        RunFolder::open(path).hint("choose another run.name, or run.folder")
    }
}

/// Loads what is small and checks what belongs together, before anything is written.
fn prepare_run(settings: &Settings) -> Result<Prepared<'_>> {
    let folders = ModelFolders {
        teacher: required(settings.teacher.model.clone(), "teacher.model")?,
        student: required(settings.student.model.clone(), "student.model")?,
    };
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
    // The models first: what is wrong with them is said before minutes of tokenizing.
    inputs::check_tokenizers(settings, &folders)?;
    let corpus = prepare::open(settings)?;
    let vocabulary = corpus.tokenizer.vocabulary() as i64;
    let inputs = Inputs::of(
        &folders,
        &corpus,
        vocabulary,
        settings.corpus.sequence_length,
    )?;
    let plan = plan(settings, &corpus);
    let device = parse_device(&settings.student.device)?;
    let chunk = settings
        .objective
        .chunk
        .unwrap_or_else(|| default_chunk(vocabulary, device));
    let objective = Objective {
        gamma: settings.objective.gamma,
        temperature: settings.objective.temperature,
        temperature_squared: settings.objective.temperature_squared,
    };
    let student = &settings.student;
    let step_tokens = settings.batch.rows * settings.corpus.sequence_length as u64;
    let from_tokens = settings
        .run
        .max_tokens
        .map(|tokens| tokens.div_ceil(step_tokens));
    let options = StudentOptions {
        objective,
        vocabulary,
        chunk,
        adamw: AdamWOptions {
            beta1: student.beta1,
            beta2: student.beta2,
            epsilon: student.epsilon,
            weight_decay: student.weight_decay,
        },
        clip_norm: student.clip_norm,
        schedule: Schedule {
            peak: student.lr,
            end: student.lr_end,
            warmup_steps: student.warmup_steps,
            total_steps: plan
                .max_steps
                .into_iter()
                .chain(from_tokens)
                .min()
                .unwrap_or(u64::MAX),
        },
    };
    let evaluation = Evaluation {
        validation: Arc::new(prepare::validation(&corpus)?),
        batch_rows: settings.evaluation.batch_rows,
        vocabulary,
        chunk,
    };
    Ok(Prepared {
        settings,
        folders,
        corpus,
        inputs,
        evaluation,
        options,
        plan,
    })
}

fn plan(settings: &Settings, corpus: &Corpus) -> RunPlan {
    let run = &settings.run;
    let of_intervals = run
        .max_intervals
        .map(|intervals| intervals * settings.mixture.interval);
    let (max_steps, max_steps_reason) = match (run.max_steps, of_intervals) {
        (Some(steps), Some(of_intervals)) if of_intervals < steps => {
            (Some(of_intervals), StopReason::MaxIntervals)
        }
        (None, Some(of_intervals)) => (Some(of_intervals), StopReason::MaxIntervals),
        (steps, _) => (steps, StopReason::MaxSteps),
    };
    RunPlan {
        domains: corpus
            .domains
            .iter()
            .map(|domain| domain.name().to_owned())
            .collect(),
        domain_rows: corpus.domains.iter().map(|domain| domain.rows()).collect(),
        natural: prepare::natural_shares(corpus),
        seed: run.seed,
        rows_per_step: settings.batch.rows,
        micro_rows: settings.batch.micro_rows,
        max_steps,
        max_steps_reason,
        max_tokens: run.max_tokens,
        stop_ratio: run.stop_ratio,
        max_passes: settings.mixture.max_passes,
        queue_depth: settings.queues.depth,
        teacher_lanes: settings.teacher.lanes,
        checkpoint_every: settings.checkpoint.every,
        gamma: settings.objective.gamma,
    }
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

/// Says where the run goes on, and loudly what was passed over.
fn announce(
    opened: Option<Opened<LoopState>>,
    path: &std::path::Path,
) -> (Option<LoopState>, Option<PathBuf>) {
    let Some(opened) = opened else {
        return (None, None);
    };
    for entry in &opened.passed_over {
        if let Err(reason) = &entry.status {
            say(&format!(
                "warning: {} is damaged and passed over: {reason}",
                entry.path.display()
            ));
            tracing::warn!(
                step = entry.step,
                reason,
                "a damaged checkpoint is passed over"
            );
        }
    }
    say(&format!(
        "going on from step {} of the run in {}",
        opened.step,
        path.display()
    ));
    (Some(opened.state), Some(opened.path))
}

/// What the workers work with.
struct Work {
    checkpoints: CheckpointStore,
    journal: Arc<Journal>,
    printer: Arc<Printer>,
    resume: Option<LoopState>,
    checkpoint: Option<PathBuf>,
}

/// Runs the actors to the end; the outcome, and the number of the signal that stopped it.
fn work(prepared: &Prepared<'_>, work: Work) -> Result<(Option<Outcome>, u8)> {
    let settings = prepared.settings;
    let policy: Box<dyn Policy> = Box::new(match &work.resume {
        Some(state) => Ddk::restore(state.interval.policy.clone()),
        None => Ddk::new(
            settings.mixture.alpha,
            settings.mixture.interval,
            match settings.mixture.first {
                ddk_settings::FirstInterval::Natural => FirstInterval::Natural,
                ddk_settings::FirstInterval::Equal => FirstInterval::Equal,
                ddk_settings::FirstInterval::Discrepancy => FirstInterval::Discrepancy,
            },
        ),
    });
    let known = match &work.resume {
        Some(state) => Some(state.at_start.teacher.clone()),
        None => prepared.inputs.cached_perplexities(settings),
    };
    let board = Board::new(COMPUTE_LIMIT);
    let parts = Parts {
        teacher: wiring::teachers(
            settings,
            prepared.folders.teacher.clone(),
            prepared.evaluation.clone(),
        ),
        student: wiring::student(
            settings,
            prepared.folders.clone(),
            prepared.options.clone(),
            prepared.evaluation.clone(),
            work.checkpoint,
        ),
        rows: wiring::rows(prepared.corpus.domains.clone(), settings.run.seed),
        checkpoints: work.checkpoints,
        journal: Arc::clone(&work.journal),
        board: Arc::clone(&board),
        observer: work.printer,
    };
    let step = work.resume.as_ref().map_or(0, |state| state.step);
    let kind = if step == 0 { "started" } else { "resumed" };
    work.journal
        .event(step, kind, &format!("process {}", std::process::id()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let recorder = Recorder::install(Arc::clone(&board)).ok();
        for report in &prepared.corpus.reports {
            metrics::QUARANTINED.with(&[&report.domain]).set(report.quarantined as f64);
        }
        let _server = serve(settings, recorder).await?;
        let signal = Arc::new(AtomicU8::new(0));
        let stop = signals(Arc::clone(&signal), Arc::clone(&work.journal))?;
        let ended = ddk_actors::run(prepared.plan.clone(), parts, policy, work.resume, known, stop).await;
        if let Err(error) = &ended {
            work.journal.event(step, "failed", &error.to_string())?;
        }
        let outcome = ended.map_err(|error| match error {
            RunError::Start { .. } => Err::<(), _>(error).usage().unwrap_err_or_lost(),
            other => Err::<(), _>(other)
                .hint("the same command goes on from the last checkpoint; events.jsonl and run.log in the run's folder say more")
                .unwrap_err_or_lost(),
        })?;
        if let Some(outcome) = &outcome {
            prepared.inputs.keep_perplexities(settings, &outcome.at_start.teacher);
        }
        Ok((outcome, signal.load(Ordering::SeqCst)))
    })
}

/// The error of a result that is known to be one.
trait UnwrapErr {
    fn unwrap_err_or_lost(self) -> anyhow::Error;
}

impl UnwrapErr for Result<()> {
    fn unwrap_err_or_lost(self) -> anyhow::Error {
        match self {
            Err(error) => error,
            Ok(()) => anyhow!("the run ended without a result"),
        }
    }
}

/// The metrics server; a port that is taken is said, and stops the run only where it is required.
async fn serve(settings: &Settings, recorder: Option<Recorder>) -> Result<Option<Server>> {
    let telemetry = &settings.telemetry;
    let (true, Some(recorder)) = (telemetry.enabled, recorder) else {
        return Ok(None);
    };
    let address = telemetry.address.parse().context("telemetry.address")?;
    match ddk_telemetry::serve(address, recorder).await {
        Ok(server) => {
            say(&format!("metrics: http://{}/metrics", server.address()));
            Ok(Some(server))
        }
        Err(error @ ServeError::PortInUse(_)) if !telemetry.required => {
            say(&format!(
                "warning: {error}; going on without metrics (telemetry.address chooses another port)"
            ));
            Ok(None)
        }
        Err(error) => {
            Err(error).hint("choose another telemetry.address, or set telemetry.enabled = false")
        }
    }
}

/// The first SIGINT or SIGTERM stops the run cleanly, the second ends the process at once.
fn signals(seen: Arc<AtomicU8>, journal: Arc<Journal>) -> Result<mpsc::Receiver<()>> {
    let (sender, receiver) = mpsc::channel(1);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            let (number, name) = tokio::select! {
                _ = interrupt.recv() => (2_u8, "SIGINT"),
                _ = terminate.recv() => (15, "SIGTERM"),
            };
            if seen.swap(number, Ordering::SeqCst) != 0 {
                std::process::exit(128 + i32::from(number));
            }
            say(&format!(
                "{name}: finishing the step and saving; once more ends at once"
            ));
            let _ = journal.event(0, "signal", name);
            let _ = sender.send(()).await;
        }
    });
    Ok(receiver)
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
