//! The run itself: the actors with their parts, from checkpoint to checkpoint.

use std::{fs, path::PathBuf, sync::Arc};

use anyhow::Result;
use ddk_actors::{
    End, LoopState, Observer, Outcome, Parts, RunError, RunPlan, Totals, worker::Exit,
};
use ddk_engine::{Evaluation, StudentOptions};
use ddk_model::ModelConfig;
use ddk_run::{
    CheckpointStore, Entry, Journal, Opened, Retention, RunFolder, records::EventKind, view::State,
};
use ddk_telemetry::{Board, metrics};
use ddk_torch::{Turns, give_freed_memory_back};
use tokio::sync::mpsc;

use super::{
    healing::{Healing, Learnt},
    lost,
    plan::keeps_best,
    policy,
    prepared::Prepared,
    reload,
    session::Session,
};
use crate::{
    args,
    hint::{Hint, usage, with_hint},
    progress::{Printer, say},
    signals::Signal,
    wiring::{self, Record, StudentStart},
};

/// How the run ended, and what is needed to sum it up.
pub(super) struct Ended {
    /// Absent where it was stopped before it made a step.
    pub(super) outcome: Option<Outcome>,
    /// The signal that came while it ran.
    pub(super) signal: Option<Signal>,
    /// Seconds of the processes before this one.
    pub(super) seconds_before: f64,
}

/// Runs the actors to the end; after what heals, again from the last checkpoint.
pub(super) fn work(
    session: &mut Session,
    prepared: &Prepared<'_>,
    folder: &RunFolder,
    reload: Option<&args::ConfigArgs>,
) -> Result<Ended> {
    let settings = prepared.settings;
    session.begin_phase();
    // Tokenizers were compared, a corpus perhaps prepared: none of that is needed any more.
    give_freed_memory_back();
    let Session {
        runtime,
        board,
        signals,
        told,
        stop,
        ..
    } = session;
    runtime.block_on(async {
        for report in &prepared.corpus.reports {
            metrics::QUARANTINED
                .with(&[&report.domain])
                .set(report.quarantined as f64);
        }
        let mut healing = Healing::open(folder, settings.guard.max_rollbacks)?;
        let limit = prepared.plan.max_steps;
        let printer = Arc::new(Printer::new(settings.log.line_seconds, limit));
        if let Some(source) = reload {
            let live = Arc::clone(&prepared.plan.live);
            reload::on_hangup(source.clone(), settings.clone(), live, Arc::clone(&printer))?;
        }
        let mut seconds_before = None;
        loop {
            // The signal came while something else was at work: a phase that has ended, an attempt that is made again.
            if let Some(came) = signals.train(board, told) {
                return Ok(Ended {
                    outcome: None,
                    signal: Some(came),
                    seconds_before: 0.0,
                });
            }
            let begin = Begin::new(prepared, folder, &healing.learnt)?;
            metrics::ROLLED_BACK_UPDATES
                .with(&[])
                .increment(printer.rewind(begin.step()));
            let totals = begin.resume.as_ref().map(|state| state.totals.clone());
            let totals = totals.unwrap_or_else(|| Totals::new(begin.plan.domains.len()));
            let seconds_before = *seconds_before.get_or_insert(totals.run_seconds);
            printer.begin(totals);
            let (plan, chunk) = (begin.plan.clone(), begin.options.chunk);
            let journal = Arc::clone(&begin.journal);
            let ended = attempt(prepared, begin, board, &printer, stop).await;
            match ended {
                Ok(outcome) => {
                    printer.finish();
                    board.set_state(State::Ending);
                    let signal = signals.came();
                    let end = outcome.as_ref().map(|outcome| outcome.end);
                    if end.is_none_or(|end| end == End::Stopped) {
                        let by = signal.map(|signal| format!("told by {}", signal.name()));
                        let message = by.unwrap_or_else(|| "told to stop".to_owned());
                        journal.note(EventKind::Stopped, &message);
                    }
                    return Ok(Ended {
                        outcome,
                        signal,
                        seconds_before,
                    });
                }
                Err(error) if healing.heals(&error, &plan, chunk, &journal)? => {
                    if let RunError::Worker {
                        worker,
                        cause: Exit::Panicked(_),
                    } = &error
                    {
                        board.worker(&worker.to_string()).restarted();
                    }
                }
                Err(error) => {
                    printer.finish();
                    journal.note(EventKind::Failed, &error.to_string());
                    return Err(explain(error));
                }
            }
        }
    })
}

/// What one attempt begins with.
struct Begin {
    checkpoints: CheckpointStore,
    journal: Arc<Journal>,
    resume: Option<LoopState>,
    checkpoint: Option<PathBuf>,
    plan: RunPlan,
    options: StudentOptions,
    evaluation: Evaluation,
}

impl Begin {
    /// Opens the newest checkpoint that verifies, and cuts the run's lines back to it.
    fn new(prepared: &Prepared<'_>, folder: &RunFolder, learnt: &Learnt) -> Result<Self> {
        let settings = prepared.settings;
        let retention = Retention {
            last: settings.checkpoint.keep,
            every: settings.checkpoint.keep_every,
            best: keeps_best(settings),
        };
        let checkpoints = CheckpointStore::open(&folder.checkpoints(), retention)?
            .with_hook(prepared.faults.save_hook());
        let opened = checkpoints.newest::<LoopState>().hint(lost::ADVICE)?;
        let mut damaged = Vec::new();
        match &opened {
            Some(opened) => {
                damaged = skipped(opened);
                // Skipped checkpoints must not count among those that are kept.
                checkpoints.set_aside_after(opened.step)?;
                let (step, run) = (opened.step, folder.path().display());
                say(&format!("resuming from step {step} of the run in {run}"));
            }
            None => {
                lost::refuse_if_saved(folder)?;
                if fs::metadata(folder.path().join("run.jsonl")).is_ok_and(|file| file.len() > 0) {
                    say("no checkpoint was saved yet: the run begins again at its first step");
                }
            }
        }
        let resumed = opened.map(|opened| (opened.state, opened.path));
        let (resume, checkpoint) = resumed.unzip();
        let state: Option<&LoopState> = resume.as_ref();
        let lengths = state.map(|state| state.lengths).unwrap_or_default();
        let journal = Journal::open(folder.path(), lengths, settings.run.trace);
        let journal = Arc::new(journal.hint(lost::ADVICE)?);
        let step = state.map_or(0, |state| state.step);
        for text in damaged {
            say(&format!("warning: {text}"));
            journal.event(step, EventKind::SetAside, &text)?;
        }
        let (mut plan, mut options) = (prepared.plan.clone(), prepared.options.clone());
        let mut evaluation = prepared.evaluation.clone();
        plan.skip.clone_from(&learnt.skip);
        plan.micro_rows = learnt.micro_rows.unwrap_or(plan.micro_rows);
        options.chunk = learnt.chunk.unwrap_or(options.chunk);
        evaluation.chunk = options.chunk;
        Ok(Self {
            checkpoints,
            journal,
            resume,
            checkpoint,
            plan,
            options,
            evaluation,
        })
    }

    fn step(&self) -> u64 {
        self.resume.as_ref().map_or(0, |state| state.step)
    }
}

/// Runs the actors until they end, one way or another.
async fn attempt(
    prepared: &Prepared<'_>,
    begin: Begin,
    board: &Arc<Board>,
    printer: &Arc<Printer>,
    stop: &mut mpsc::Receiver<()>,
) -> Result<Option<Outcome>, RunError> {
    let settings = prepared.settings;
    let known = match &begin.resume {
        _ if !prepared.folders.has_teacher => Some(Vec::new()),
        Some(state) if !state.at_start.teacher.is_empty() => Some(state.at_start.teacher.clone()),
        _ => prepared.inputs.cached_perplexities(settings),
    };
    let step = begin.step();
    let kind = match step {
        0 => EventKind::Started,
        _ => EventKind::Resumed,
    };
    let lost = |error: anyhow::Error| RunError::Lost(error.to_string());
    let policy = match &begin.resume {
        Some(state) => state.interval.policy.clone(),
        None => prepared.policy().map_err(lost)?.state(),
    };
    let policy = policy.into_policy();
    let process = format!("process {}", std::process::id());
    let started = begin.journal.event(step, kind, &process);
    started.map_err(|error| lost(error.into()))?;
    tracing::info!(
        bytes = queue_bytes(prepared).map_err(lost)?,
        depth = settings.queues.depth,
        "the queues of micro-batches hold at most this much"
    );
    let faults = || Arc::clone(&prepared.faults);
    let turns = Turns::new(settings.run.take_turns);
    let parts = Parts {
        teacher: wiring::teachers(
            settings,
            prepared.folders.clone(),
            begin.evaluation.clone(),
            known.is_some(),
            begin.options.filters.clone(),
            turns.clone(),
            faults(),
        ),
        student: wiring::student(
            settings,
            prepared.folders.clone(),
            StudentStart {
                options: begin.options,
                row_losses: policy::row_losses(policy.needs()),
                checkpoint: begin.checkpoint,
                turns,
            },
            begin.evaluation,
            records(prepared).map_err(lost)?,
            Arc::clone(&begin.plan.live),
            faults(),
        ),
        rows: wiring::rows(prepared.corpus.domains.clone(), settings.run.seed, faults()),
        batcher: wiring::batcher(faults()),
        checkpoints: begin.checkpoints,
        journal: begin.journal,
        board: Arc::clone(board),
        observer: Arc::clone(printer) as Arc<dyn Observer>,
    };
    let mut plan = begin.plan;
    if known.is_some() {
        plan.teacher_evaluation_flops = 0.0;
    }
    let outcome = ddk_actors::run(plan, parts, policy, begin.resume, known, stop).await?;
    let teacher = outcome.as_ref().map(|outcome| &outcome.at_start.teacher);
    // A fork that is stopped before its first step has none; no run without a teacher has any.
    if let Some(teacher) = teacher.filter(|teacher| !teacher.is_empty()) {
        prepared.inputs.keep_perplexities(settings, teacher);
    }
    Ok(outcome)
}

/// What a checkpoint says about itself: the settings, the hashes of what the run is made from (the teacher's
/// perplexities belong to these), the versions of what wrote it.
fn records(prepared: &Prepared<'_>) -> Result<Vec<Record>> {
    let config = prepared.settings.to_toml()?;
    let versions = serde_json::json!({
        "ddk": env!("CARGO_PKG_VERSION"),
        "libtorch": ddk_torch::VERSION,
        "checkpoint": ddk_run::CHECKPOINT_FORMAT,
    });
    let inputs = serde_json::to_vec_pretty(&prepared.inputs)?;
    let versions = serde_json::to_vec_pretty(&versions)?;
    Ok(vec![
        ("config.toml", config.into_bytes().into()),
        ("inputs.json", inputs.into()),
        ("versions.json", versions.into()),
    ])
}

/// Checkpoints that were skipped, and why.
fn skipped(opened: &Opened<LoopState>) -> Vec<String> {
    let entries = opened.passed_over.iter();
    let damaged = entries.filter_map(|entry| Some((entry, entry.status.as_ref().err()?)));
    let text = |(entry, reason): (&Entry, &String)| {
        format!(
            "{} is damaged, passed over and set aside: {reason}",
            entry.path.display()
        )
    };
    damaged.map(text).collect()
}

/// Bytes that the queues before and behind the teachers hold at most: token ids, and hidden states in fp32,
/// those of TED's layers included.
fn queue_bytes(prepared: &Prepared<'_>) -> Result<u64> {
    let settings = prepared.settings;
    let width = ModelConfig::read(&prepared.folders.teacher)?.hidden_size() as u64;
    let positions = settings.batch.micro_rows * settings.corpus.sequence_length as u64;
    let batches = (settings.queues.depth * settings.teacher.all_lanes()) as u64;
    let filters = prepared.options.filters.as_ref();
    let layers = 1 + filters.map_or(0, |filters| filters.pairs.len() as u64);
    let layers = u64::from(wiring::needs_teacher_output(settings)) * layers;
    Ok(batches * positions * (8 + 4 * width * layers))
}

/// A part that cannot be started is a matter of configuration; after any other failure the run can go on.
fn explain(error: RunError) -> anyhow::Error {
    match error {
        RunError::Start { .. } => usage(error),
        RunError::Worker { .. } | RunError::Lost(_) => with_hint(
            error,
            "the same command resumes from the last checkpoint; events.jsonl and run.log in the run's folder say more",
        ),
    }
}
