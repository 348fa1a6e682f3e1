//! Runs the actors of a run from start to end. Assembles the workers at its start, and again after each rewind.

use std::{
    fs,
    path::Path,
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result};
use ddk_actors::{
    End, Generation, LoopState, Observer, Outcome, Run, RunError, StepReport, Totals, ports::Peers,
};
use ddk_engine::{Evaluation, Parallel, StudentOptions};
use ddk_run::{
    CheckpointStore, Journal, Opened, Override, Overrides, Retention, RunFolder, Source,
    records::{EventKind, EventLine, MixtureLine},
    view::State,
};
use ddk_settings::Settings;
use ddk_telemetry::{Board, metrics};
use ddk_torch::{TimeSlice, give_freed_memory_back};
use parking_lot::Mutex;

use super::{
    changes, course, options, policy,
    prepared::{Prepared, keeps_best},
    session::{Session, process},
};
use crate::{
    args,
    checkpoints::{LOST, refuse_if_saved},
    config,
    hint::{Hint, usage, with_hint},
    printer::Printer,
    progress::{loading, say},
    ranks::{self, GroupPeers, Ranks},
    signals::Answer,
    wiring::{Models, Ports, Prompts, Record, StudentPort, TeacherPort},
};

/// Runs the actors to the end. Returns how the run ended, or `None` if it was stopped before its first step. Also
/// returns the seconds that earlier processes spent on the run.
pub(super) fn work(
    session: &mut Session,
    prepared: &Arc<Prepared>,
    folder: &RunFolder,
    reload: Option<&args::ConfigArgs>,
) -> Result<(Option<Outcome>, f64)> {
    session.board.set_state(State::Starting);
    // Comparing tokenizers and preparing a corpus needed memory that is no longer in use.
    give_freed_memory_back();
    for report in &prepared.corpus.reports {
        let quarantined = metrics::QUARANTINED.with(&[&report.domain]);
        quarantined.set(report.quarantined as f64);
    }
    let plan = &prepared.plan;
    let overrides = if ranks::leads(session.ranks.as_ref()) {
        Overrides::open(folder.path()).hint(LOST)?
    } else {
        Overrides::look(folder.path())
    };
    let assembly = Arc::new(Assembly {
        prepared: Arc::clone(prepared),
        folder: folder.clone(),
        board: Arc::clone(&session.board),
        overrides: Arc::new(overrides),
        printer: Arc::new(Printer::new(
            Arc::clone(&plan.live),
            Arc::clone(session.board.activity()),
        )),
        seconds_before: OnceLock::new(),
        journal: Mutex::default(),
        ranks: session.ranks.clone(),
    });
    let (control, signals) = (&session.control, &session.signals);
    // The signal arrived before the workers could receive it.
    let answer = Answer::Train(Arc::clone(control));
    if signals.answer_by(answer).is_some() {
        return Ok((None, 0.0));
    }
    // Keep the error with its hints, because the actors receive only its text.
    let failure = Arc::new(Mutex::new(None));
    let (assembler, failed) = (Arc::clone(&assembly), Arc::clone(&failure));
    let assemble = move || {
        assembler.assemble().map_err(|error| {
            let text = error.to_string();
            *failed.lock() = Some(error);
            RunError::Lost(text)
        })
    };
    let ended = session.runtime.block_on(async {
        let run = Run::start(assemble, Arc::clone(&assembly.overrides)).await?;
        control.works_on(Some(run.handle()));
        if let Some(source) = reload {
            let settings = prepared.models.settings.clone();
            changes::on_hangup(source.clone(), settings, Arc::clone(control))?;
        }
        let ended = run.ended().await;
        control.works_on(None);
        Ok::<_, anyhow::Error>(ended)
    })?;
    if let Some(Err(error)) = prepared.labels.as_ref().map(|set| set.flush()) {
        tracing::warn!(%error, "cannot write the last labels to the teacher's cache");
    }
    let journal = assembly.journal.lock().take();
    let log = folder.log(session.ranks.as_ref().map_or(0, |ranks| ranks.rank()));
    let note = |kind, message: &str| {
        journal.as_ref().map(|journal| journal.note(kind, message));
    };
    // Rank 0 or another rank may have stopped before this one was ready, and a signal came to all.
    if let (Err(RunError::Rank { .. }), Some(_)) = (&ended, signals.came()) {
        return Ok((None, 0.0));
    }
    let outcome = ended.map_err(|error| {
        note(EventKind::Failed, &error.to_string());
        failure
            .lock()
            .take()
            .unwrap_or_else(|| explain(error, &log))
    })?;
    session.board.set_state(State::Ending);
    let end = outcome.as_ref().map(|outcome| outcome.end);
    if end.is_none_or(|end| end == End::Stopped) {
        let by = signals.came();
        let by = by.map(|signal| format!("received {}", signal.name()));
        let by = by.as_deref().unwrap_or("stop requested");
        note(EventKind::Stopped, by);
    }
    let teacher = outcome.as_ref().map(|outcome| &outcome.baseline.teacher);
    // Empty for a fork that is stopped before its first step, and for a run without a teacher.
    if let Some(teacher) = teacher.filter(|teacher| !teacher.is_empty()) {
        let settings = &prepared.models.settings;
        let labels = prepared.labels.as_deref();
        if ranks::leads(session.ranks.as_ref()) {
            prepared.inputs.keep_perplexities(settings, labels, teacher);
        }
    }
    let seconds_before = assembly.seconds_before.get().copied();
    Ok((outcome, seconds_before.unwrap_or_default()))
}

/// Marks a failure to start as a configuration error. After any other failure, the run can resume.
fn explain(error: RunError, log: &Path) -> anyhow::Error {
    match error {
        RunError::Start { .. } => usage(error),
        RunError::Worker { .. } | RunError::Rank { .. } | RunError::Lost(_) => with_hint(
            error,
            format!(
                "the same command resumes from the last checkpoint; see events.jsonl in the run's folder, and {}",
                log.display()
            ),
        ),
    }
}

/// Assembles what the workers of a run need, at its start and after each rewind.
struct Assembly {
    prepared: Arc<Prepared>,
    folder: RunFolder,
    board: Arc<Board>,
    overrides: Arc<Overrides>,
    printer: Arc<Printer>,
    /// Seconds that earlier processes spent on the run, known once the first generation is assembled.
    seconds_before: OnceLock<f64>,
    /// The journal of the last generation.
    journal: Mutex<Option<Arc<Journal>>>,
    /// The other processes of the run, if there are any.
    ranks: Option<Arc<Ranks>>,
}

impl Assembly {
    /// Builds a generation from the newest checkpoint. If there are several ranks, rank 0 opens it first.
    fn assemble(&self) -> Result<Generation<TeacherPort, StudentPort>> {
        let opened = Ranks::in_turn(
            self.ranks.as_deref(),
            || self.open().map(Some),
            || self.follow(),
        )?;
        let opened = opened.context("rank 0 has opened no checkpoint")?;
        self.generation(opened)
    }

    /// Opens the newest checkpoint that verifies, and truncates the run's record files to match it.
    fn open(&self) -> Result<Start> {
        let (prepared, folder, printer) = (&self.prepared, &self.folder, &self.printer);
        // Write out what the previous generation's journal still holds before truncating its files.
        *self.journal.lock() = None;
        let settings = &prepared.models.settings;
        let recovered = settings.with(&self.overrides.recovered())?;
        let retention = Retention {
            last: recovered.checkpoint.keep_latest,
            every: recovered.checkpoint.keep_every,
            best: keeps_best(&recovered),
        };
        let mut checkpoints = CheckpointStore::open(&folder.checkpoints(), retention)?;
        checkpoints.hook = Some(prepared.faults.save_hook());
        let opened = checkpoints.newest::<LoopState>().hint(LOST)?;
        let steps = fs::metadata(folder.path().join("run.jsonl"));
        let has_steps = steps.is_ok_and(|file| file.len() > 0);
        if let Some(opened) = &opened {
            // Skipped checkpoints must not count toward the number of kept ones.
            checkpoints.set_aside_after(opened.step)?;
            let (step, run) = (opened.step, folder.path().display());
            // A fork has a checkpoint before its first step.
            say(&if has_steps {
                format!("resuming from step {step} of the run in {run}")
            } else {
                format!("starting at step {} of the run in {run}", step + 1)
            });
        } else {
            refuse_if_saved(folder)?;
            if has_steps {
                say("no checkpoint was saved yet: the run starts again at its first step");
            }
        }
        let state = opened.as_ref().map(|opened| &opened.state);
        let lengths = state.map(|state| state.lengths).unwrap_or_default();
        let journal = Journal::open(folder.path(), lengths, recovered.log.samples);
        let journal = Arc::new(journal.hint(LOST)?);
        let step = state.map_or(0, |state| state.step);
        for skipped in opened.iter().flat_map(|opened| &opened.skipped) {
            if let Err(reason) = &skipped.status {
                let path = skipped.path.display();
                let text = format!("{path} is damaged, skipped and set aside: {reason}");
                say(&format!("warning: {text}"));
                journal.event(step, EventKind::SetAside, &text)?;
            }
        }
        let totals = state.map(|state| state.totals.clone());
        let totals = totals.unwrap_or_else(|| Totals::new(prepared.plan.domains.len()));
        *self.journal.lock() = Some(Arc::clone(&journal));
        // Only the first generation of a process can find an edited configuration.
        let is_first = self.seconds_before.set(totals.run_seconds).is_ok();
        let evaluations = state.map_or(0, |state| state.interval.index);
        let course = course::course(
            prepared,
            &recovered,
            (totals.evaluation_seconds, evaluations),
        );
        let activity = self.board.activity();
        activity.set_course(course, step, totals.all_tokens());
        // Opening the journal has dropped those after the checkpoint.
        let mixtures = ddk_run::read::mixtures(folder.path())?;
        let undone = printer.begin(step, totals, &mixtures);
        metrics::REWOUND_STEPS.with(&[]).increment(undone);
        let at_start = config::of_run(folder.path())?;
        let mut is_edited = false;
        if is_first {
            let (set, in_words) = changes::edited(&at_start, settings, &self.overrides)?;
            is_edited = !set.is_empty();
            if is_edited {
                say(&format!("from step {} on: {in_words}", step + 1));
                self.overrides.append(Override {
                    step: step + 1,
                    source: Source::Config,
                    set,
                    ..Override::default()
                })?;
                journal.event(step, EventKind::Changed, &in_words)?;
            }
        }
        let live = changes::of_start(&recovered, &at_start)?;
        let changed = self.overrides.up_to(step + 1);
        if is_first && !is_edited && !changed.is_empty() {
            let values = changed
                .iter()
                .map(|(key, value)| format!("{key} = {value}"));
            let values: Vec<String> = values.collect();
            say(&format!(
                "changed since the run started: {}",
                values.join(", ")
            ));
        }
        let live = live.with(&changed)?;
        prepared.plan.live.set(live);
        let kind = match step {
            0 => EventKind::Started,
            _ => EventKind::Resumed,
        };
        journal.event(step, kind, &process())?;
        Ok(Start {
            recovered,
            checkpoints,
            journal,
            opened,
        })
    }

    /// Opens the checkpoint that rank 0 has opened. Changes no file.
    fn follow(&self) -> Result<Start> {
        let (prepared, folder) = (&self.prepared, self.folder.path());
        self.overrides.reload().hint(LOST)?;
        let recovered = prepared.models.settings.with(&self.overrides.recovered())?;
        let checkpoints = CheckpointStore::look(&self.folder.checkpoints());
        let opened = checkpoints.newest::<LoopState>().hint(LOST)?;
        let state = opened.as_ref().map(|opened| &opened.state);
        let step = state.map_or(0, |state| state.step);
        let before = state.map_or(0.0, |state| state.totals.run_seconds);
        let _ = self.seconds_before.set(before);
        let live = changes::of_start(&recovered, &config::of_run(folder)?)?;
        let live = live.with(&self.overrides.up_to(step + 1))?;
        prepared.plan.live.set(live);
        Ok(Start {
            recovered,
            checkpoints,
            journal: Arc::new(Journal::silent()),
            opened,
        })
    }

    /// Builds a generation.
    fn generation(&self, start: Start) -> Result<Generation<TeacherPort, StudentPort>> {
        let prepared = &self.prepared;
        let models = &prepared.models;
        let Start {
            mut recovered,
            checkpoints,
            journal,
            opened,
        } = start;
        let connect = |ranks: &Arc<Ranks>| ranks.connect(&recovered, &prepared.inputs);
        let group = self.ranks.as_ref().map(connect).transpose()?;
        if let Some(ranks) = &self.ranks {
            recovered = ranks::own_devices(&recovered, ranks)?;
        }
        let opened = opened.map(|opened| (opened.state, opened.path));
        let (resume, checkpoint) = opened.unzip();
        let teacher = resume.as_ref().map(|state| &state.baseline.teacher);
        let known = match teacher {
            _ if !models.folders.has_teacher => Some(Vec::new()),
            Some(teacher) if !teacher.is_empty() => Some(teacher.clone()),
            _ => {
                let labels = prepared.labels.as_deref();
                prepared.inputs.known_perplexities(&models.settings, labels)
            }
        };
        let options = StudentOptions {
            chunk: options::chunk(&recovered, models.options.vocabulary)?,
            recompute: recovered.student.activation_checkpointing,
            parallel: Parallel {
                group: group.clone(),
                ..models.options.parallel
            },
            ..models.options.clone()
        };
        let mut evaluation = prepared.evaluation.clone();
        (evaluation.chunk, evaluation.batch_rows) =
            (options.chunk, recovered.evaluation.batch_size);
        let mut plan = prepared.plan.clone();
        plan.skip = self.overrides.skip_steps();
        (plan.micro_rows, plan.chunk) = (recovered.training.micro_batch_size, options.chunk);
        if known.is_some() {
            plan.teacher_evaluation_flops = 0.0;
        }
        let state = match resume {
            Some(state) => state,
            None => LoopState::new(&plan, policy::of_run(prepared)?),
        };
        let (bytes, depth) = (queue_bytes(prepared)?, recovered.pipeline.queue_depth);
        tracing::info!(bytes, depth, "maximum size of the micro-batch queues");
        let row_losses = policy::row_losses(state.interval.policy.needs());
        let (records, live) = (records(prepared)?, Arc::clone(&plan.live));
        let loading = loading(course::bytes_to_load(prepared, known.is_none()));
        let ports = Arc::new(Ports {
            outages: Arc::default(),
            turns: TimeSlice::new(recovered.pipeline.time_slicing),
            prompts: Prompts::of(&recovered)?,
            has_no_texts: state.lengths.texts == 0,
            models: Models {
                settings: recovered,
                folders: models.folders.clone(),
                options,
            },
            // Rank 0 measures the teacher alone.
            teacher_evaluation: evaluation.clone(),
            evaluation: Evaluation {
                group: group.clone(),
                ..evaluation
            },
            labels: prepared.labels.clone(),
            faults: Arc::clone(&prepared.faults),
        });
        Ok(Generation {
            plan,
            state,
            teacher: ports.teachers(known.is_some()),
            student: course::until_built(
                loading,
                ports.student(row_losses, checkpoint, records, live),
            ),
            rows: ports.rows(prepared.corpus.domains.clone()),
            batcher: ports.batcher(),
            checkpoints,
            journal,
            overrides: Arc::clone(&self.overrides),
            board: Arc::clone(&self.board),
            observer: if ranks::leads(self.ranks.as_ref()) {
                Arc::clone(&self.printer) as Arc<dyn Observer>
            } else {
                Arc::new(Silent)
            },
            teacher_perplexities: known,
            peers: group.map(|group| Arc::new(GroupPeers(group)) as Arc<dyn Peers>),
        })
    }
}

/// What a generation starts from.
struct Start {
    /// The run's settings with the changes that recoveries made.
    recovered: Settings,
    checkpoints: CheckpointStore,
    journal: Arc<Journal>,
    opened: Option<Opened<LoopState>>,
}

/// The observer of a rank whose steps rank 0 reports.
struct Silent;

impl Observer for Silent {
    fn on_step(&self, _step: &StepReport<'_>) {}

    fn on_mixture(&self, _line: &MixtureLine) {}

    fn on_event(&self, _event: &EventLine) {}
}

/// Returns what a checkpoint records about itself: the settings, the hashes of the run's inputs (which the
/// teacher's perplexities depend on), and the versions of what wrote it.
fn records(prepared: &Prepared) -> Result<Vec<Record>> {
    let config = prepared.models.settings.to_toml()?;
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

/// Returns the maximum bytes in the queues before and after the teachers: token ids, and hidden states in fp32,
/// including those of TED's layers.
fn queue_bytes(prepared: &Prepared) -> Result<u64> {
    let (models, settings) = (&prepared.models, &prepared.models.settings);
    let width = models.folders.teacher_config()?.hidden_size() as u64;
    let positions = settings.training.micro_batch_size * settings.corpus.sequence_length as u64;
    let batches = (settings.pipeline.queue_depth * settings.teacher.replicas()) as u64;
    let filters = models.options.filters.as_ref();
    let layers = 1 + filters.map_or(0, |filters| filters.pairs.len() as u64);
    let layers = u64::from(models.asks_teacher()) * layers;
    Ok(batches * positions * (8 + 4 * width * layers))
}
