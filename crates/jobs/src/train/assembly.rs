//! Assembles the workers of a run at its start, and again after each rewind.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use anyhow::Result;
use ddk_actors::{Generation, LoopState, Observer, Parts, Totals};
use ddk_engine::StudentOptions;
use ddk_model::ModelConfig;
use ddk_run::{
    CheckpointStore, Entry, Journal, Opened, Override, Overrides, Retention, RunFolder, Source,
    records::EventKind,
};
use ddk_settings::Settings;
use ddk_telemetry::{Board, metrics};
use ddk_torch::TimeSlice;

use super::{changes, lost, options, plan::keeps_best, policy, prepared::Prepared};
use crate::{
    config,
    hint::Hint,
    progress::{Printer, lock, say},
    wiring::{self, Record, StudentPort, StudentStart, TeacherPort},
};

/// Assembles what the workers of a run need, at its start and after each rewind.
pub(super) struct Assembly {
    pub(super) prepared: Arc<Prepared>,
    pub(super) folder: RunFolder,
    pub(super) board: Arc<Board>,
    pub(super) overrides: Arc<Overrides>,
    pub(super) printer: Arc<Printer>,
    pub(super) begun: Arc<Mutex<Begun>>,
}

/// What is known once the first generation is assembled.
#[derive(Default)]
pub(super) struct Begun {
    /// Seconds that earlier processes spent on the run.
    pub(super) seconds_before: Option<f64>,
    /// The journal of the last generation.
    pub(super) journal: Option<Arc<Journal>>,
}

impl Assembly {
    /// Opens the newest checkpoint that verifies, truncates the run's record files to match it, and builds the
    /// parts from it.
    pub(super) fn assemble(&self) -> Result<Generation<TeacherPort, StudentPort>> {
        let Self {
            prepared,
            folder,
            printer,
            ..
        } = self;
        // Write out what the previous generation's journal still holds before truncating its files.
        lock(&self.begun).journal = None;
        let settings = prepared.settings.with(&self.overrides.recovered())?;
        let retention = Retention {
            last: settings.checkpoint.keep_latest,
            every: settings.checkpoint.keep_every,
            best: keeps_best(&settings),
        };
        let checkpoints = CheckpointStore::open(&folder.checkpoints(), retention)?
            .with_hook(prepared.faults.save_hook());
        let opened = checkpoints.newest::<LoopState>().hint(lost::ADVICE)?;
        let mut damaged = Vec::new();
        match &opened {
            Some(opened) => {
                damaged = skipped(opened);
                // Skipped checkpoints must not count toward the number of kept ones.
                checkpoints.set_aside_after(opened.step)?;
                let (step, run) = (opened.step, folder.path().display());
                say(&format!("resuming from step {step} of the run in {run}"));
            }
            None => {
                lost::refuse_if_saved(folder)?;
                if fs::metadata(folder.path().join("run.jsonl")).is_ok_and(|file| file.len() > 0) {
                    say("no checkpoint was saved yet: the run starts again at its first step");
                }
            }
        }
        let resumed = opened.map(|opened| (opened.state, opened.path));
        let (resume, checkpoint) = resumed.unzip();
        let state: Option<&LoopState> = resume.as_ref();
        let lengths = state.map(|state| state.lengths).unwrap_or_default();
        let journal = Journal::open(folder.path(), lengths, settings.log.samples);
        let journal = Arc::new(journal.hint(lost::ADVICE)?);
        let step = state.map_or(0, |state| state.step);
        for text in damaged {
            say(&format!("warning: {text}"));
            journal.event(step, EventKind::SetAside, &text)?;
        }
        let undone = printer.rewind(step);
        metrics::REWOUND_STEPS.with(&[]).increment(undone);
        let totals = state.map(|state| state.totals.clone());
        let totals = totals.unwrap_or_else(|| Totals::new(prepared.plan.domains.len()));
        // Only the first generation of a process can find an edited configuration.
        let is_first = {
            let mut begun = lock(&self.begun);
            begun.journal = Some(Arc::clone(&journal));
            let is_first = begun.seconds_before.is_none();
            begun.seconds_before.get_or_insert(totals.run_seconds);
            is_first
        };
        printer.begin(totals);
        let at_start = config::of_run(folder.path())?;
        if is_first {
            let (set, in_words) = changes::edited(&at_start, &prepared.settings, &self.overrides)?;
            if !set.is_empty() {
                let step = step + 1;
                say(&format!("from step {step} on: {in_words}"));
                self.overrides.append(Override {
                    step,
                    source: Source::Config,
                    set,
                    ..Override::default()
                })?;
                journal.event(step - 1, EventKind::Changed, &in_words)?;
            }
        }
        let live = changes::of_start(&settings, &at_start)?;
        let live = live.with(&self.overrides.up_to(step + 1))?;
        prepared.plan.live.set(live);
        let kind = match step {
            0 => EventKind::Started,
            _ => EventKind::Resumed,
        };
        journal.event(step, kind, &format!("process {}", std::process::id()))?;
        self.generation(&settings, checkpoints, journal, resume, checkpoint)
    }

    /// Builds a generation. `settings`: the run's, with the changes that recoveries made.
    fn generation(
        &self,
        settings: &Settings,
        checkpoints: CheckpointStore,
        journal: Arc<Journal>,
        resume: Option<LoopState>,
        checkpoint: Option<PathBuf>,
    ) -> Result<Generation<TeacherPort, StudentPort>> {
        let prepared = &self.prepared;
        let known = match &resume {
            _ if !prepared.folders.has_teacher => Some(Vec::new()),
            Some(state) if !state.baseline.teacher.is_empty() => {
                Some(state.baseline.teacher.clone())
            }
            _ => prepared.inputs.cached_perplexities(&prepared.settings),
        };
        let options = StudentOptions {
            chunk: options::chunk(settings, prepared.options.vocabulary)?,
            recompute: settings.student.activation_checkpointing,
            ..prepared.options.clone()
        };
        let mut evaluation = prepared.evaluation.clone();
        (evaluation.chunk, evaluation.batch_rows) = (options.chunk, settings.evaluation.batch_size);
        let mut plan = prepared.plan.clone();
        plan.skip = self.overrides.skip_steps();
        (plan.micro_rows, plan.chunk) = (settings.training.micro_batch_size, options.chunk);
        if known.is_some() {
            plan.teacher_evaluation_flops = 0.0;
        }
        let policy = match &resume {
            Some(state) => state.interval.policy.clone(),
            None => prepared.policy()?.state(),
        };
        let policy = policy.into_policy();
        tracing::info!(
            bytes = queue_bytes(prepared)?,
            depth = settings.pipeline.queue_depth,
            "maximum size of the micro-batch queues"
        );
        let faults = || Arc::clone(&prepared.faults);
        let turns = TimeSlice::new(settings.pipeline.time_slicing);
        let parts = Parts {
            teacher: wiring::teachers(
                settings,
                prepared.folders.clone(),
                evaluation.clone(),
                known.is_some(),
                options.filters.clone(),
                turns.clone(),
                faults(),
            ),
            student: wiring::student(
                settings,
                prepared.folders.clone(),
                StudentStart {
                    options,
                    row_losses: policy::row_losses(policy.needs()),
                    checkpoint,
                    turns,
                },
                evaluation,
                records(prepared)?,
                Arc::clone(&plan.live),
                faults(),
            ),
            rows: wiring::rows(prepared.corpus.domains.clone(), settings.run.seed, faults()),
            batcher: wiring::batcher(faults()),
            checkpoints,
            journal,
            overrides: Arc::clone(&self.overrides),
            board: Arc::clone(&self.board),
            observer: Arc::clone(&self.printer) as Arc<dyn Observer>,
        };
        Ok(Generation {
            plan,
            parts,
            policy,
            resume,
            teacher_perplexities: known,
        })
    }
}

/// Returns what a checkpoint records about itself: the settings, the hashes of the run's inputs (which the
/// teacher's perplexities depend on), and the versions of what wrote it.
fn records(prepared: &Prepared) -> Result<Vec<Record>> {
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

/// Describes the damaged checkpoints that were skipped.
fn skipped(opened: &Opened<LoopState>) -> Vec<String> {
    let entries = opened.skipped.iter();
    let damaged = entries.filter_map(|entry| Some((entry, entry.status.as_ref().err()?)));
    let text = |(entry, reason): (&Entry, &String)| {
        format!(
            "{} is damaged, skipped and set aside: {reason}",
            entry.path.display()
        )
    };
    damaged.map(text).collect()
}

/// Returns the maximum bytes in the queues before and after the teachers: token ids, and hidden states in fp32,
/// including those of TED's layers.
fn queue_bytes(prepared: &Prepared) -> Result<u64> {
    let settings = &prepared.settings;
    let width = ModelConfig::read(&prepared.folders.teacher)?.hidden_size() as u64;
    let positions = settings.training.micro_batch_size * settings.corpus.sequence_length as u64;
    let batches = (settings.pipeline.queue_depth * settings.teacher.devices.len()) as u64;
    let filters = prepared.options.filters.as_ref();
    let layers = 1 + filters.map_or(0, |filters| filters.pairs.len() as u64);
    let layers = u64::from(wiring::needs_teacher_output(settings)) * layers;
    Ok(batches * positions * (8 + 4 * width * layers))
}
