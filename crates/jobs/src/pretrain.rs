//! `ddk pretrain`: trains a new model, or one from a folder, with cross-entropy alone.
//!
//! Pretraining is a run without a teacher, so it has checkpoints, exact resume, signals, metrics and a live page. Its
//! folder is beside the model: `OUT.run`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use ddk_model::{Architecture, Export, Model, ModelConfig};
use ddk_run::{RunFolder, view::counted};
use ddk_settings::{
    LrScheduler, Method, MixturePolicy, ObjectiveName, Pretrain, Settings, ThreadChoice,
};
use tch::Device;

use crate::{
    args,
    checkpoints::start_over,
    config,
    findings::fits,
    hint::Hint,
    hub::{self, Wanted},
    phase::Phase,
    prepare::{self, Corpus, Outdated},
    progress::{hash_weights, say},
    signals::Signals,
    train::{
        prepared::Destination,
        run::{open_folder, settings_of, stand_alone},
    },
};

/// Records the model's inputs, in its folder and in the run's, so that the model is not trained twice.
const RECORD: &str = "pretrain.json";
/// The initial model, in the run folder.
const INITIAL: &str = "initial";

/// Trains the model of `[pretrain.NAME]`, unless it already exists.
///
/// # Errors
/// If there is no such section, if the folder holds something else, or if training fails.
pub fn run(args: &args::Pretrain, signals: &Signals) -> Result<()> {
    let settings = config::begin(&args.config, signals)?;
    model(&settings, &args.model, args.force, true, signals)
}

/// Like [`run`]. `reloads`: whether to answer SIGHUP.
pub(crate) fn model(
    settings: &Settings,
    name: &str,
    force: bool,
    reloads: bool,
    signals: &Signals,
) -> Result<()> {
    let model = settings.pretrain.get(name).with_context(|| {
        let known: Vec<&str> = settings.pretrain.keys().map(String::as_str).collect();
        let known = known.join(", ");
        format!("the configuration has no [pretrain.{name}] (available: {known})")
    });
    let model = model.usage()?;
    let initial = model.init_from.as_deref().map(Wanted::Initial);
    let wanted: Vec<Wanted<'_>> = initial.into_iter().chain([Wanted::Corpus]).collect();
    let pinned = hub::revisions_of(&run_folder(&model.output_dir)?)?;
    let settings = &hub::located(settings, &wanted, &pinned, Some(signals))?;
    check_folders(settings, model, name)?;
    let (run, out) = (run_folder(&model.output_dir)?, model.output_dir.display());
    refuse_others(&run, model)?;
    // Added text must not invalidate a finished model or an unfinished run.
    let outdated = match force {
        false if is_unfinished(&run) => Outdated::NeededBy(&run),
        false if model.output_dir.join(RECORD).exists() => Outdated::Kept,
        _ => Outdated::AsSet,
    };
    signals.begin(Phase::Prepare)?;
    let corpus = prepare::open(settings, outdated)?;
    signals.begin(Phase::Hash)?;
    let record = record(settings, model, &corpus)?;
    let resumes = !force && is_unfinished(&run) && holds(&run, &record);
    if !force && !resumes && holds(&model.output_dir, &record) {
        say(&format!("{name}: {out} already exists"));
        return Ok(());
    }
    if model.output_dir.exists() && !model.output_dir.join(RECORD).exists() {
        return Err(anyhow!(
            "{out} contains files that `ddk pretrain` did not write"
        ))
        .hint(format!(
            "choose another folder for pretrain.{name}.output_dir, or move the existing one away"
        ));
    }
    let advice = "move your own files out of that folder";
    ddk_model::may_replace(&model.output_dir, Some(RECORD)).hint(advice)?;
    if model.output_dir.exists() && !force && !holds(&model.output_dir, &record) {
        say(&format!(
            "{name}: {out} was trained with other settings or other data; training it again"
        ));
    }
    if !resumes && !RunFolder::made(&run)?.is_empty() {
        // Clear the record first, so that an interrupted restart is never mistaken for the run that it sets aside.
        ddk_files::write_atomically(&run.join(RECORD), b"{}")?;
        start_over(&open_folder(&run, false, None)?)?;
    }
    let settings = settings_of_run(settings, model, &run, resumes)?;
    begin(&settings, model, name, &corpus, &run, &record)?;
    let destination = Destination {
        folder: model.output_dir.clone(),
        record: (RECORD, record),
    };
    let mut ran = stand_alone(&settings, destination, reloads, signals);
    if resumes {
        ran = ran.hint(format!(
            "the run in {} resumes with the settings of its config.toml; --force starts over and sets it aside",
            run.display()
        ));
    }
    ran?;
    let summary = ddk_run::read::summary(&run)?;
    say(&format!(
        "{name}: {}, {:.0} s at {:.0} tokens/s, saved in {out}; its report is {}",
        counted(summary.steps, "step"),
        summary.seconds,
        summary.tokens_per_second,
        run.join("report.html").display()
    ));
    Ok(())
}

/// Rejects a model that would replace one of its inputs.
fn check_folders(settings: &Settings, model: &Pretrain, name: &str) -> Result<()> {
    for (what, folder) in [
        ("init_from", &model.init_from),
        ("tokenizer", &settings.corpus.tokenizer),
    ] {
        let is_out =
            |folder: &PathBuf| ddk_model::same_folder(&settings.local(folder), &model.output_dir);
        if folder.as_ref().is_some_and(is_out) {
            return Err(anyhow!(
                "`pretrain.{name}.output_dir` is {}, which is the folder of the {what} that the model needs",
                model.output_dir.display()
            ))
            .hint("choose another folder for the model")
            .usage();
        }
    }
    Ok(())
}

/// Returns whether this folder holds an unfinished pretraining run.
fn is_unfinished(run: &Path) -> bool {
    RunFolder::holds_a_run(run) && run.join(RECORD).exists() && !run.join("summary.json").exists()
}

/// Rejects a run folder that does not belong to this model.
fn refuse_others(run: &Path, model: &Pretrain) -> Result<()> {
    let problem = if let Ok(text) = fs::read_to_string(run.join(RECORD)) {
        let record: serde_json::Value = serde_json::from_str(&text)?;
        let out = record["model"]["output_dir"].as_str().map(Path::new);
        out.filter(|out| *out != model.output_dir)
            .map(|out| format!("belongs to the model in {}", out.display()))
    } else {
        // An interrupted restart may have set the record aside first.
        let is_ours = run.join("aside-1").join(RECORD).exists() || RunFolder::made(run)?.is_empty();
        (!is_ours).then(|| "contains files that `ddk pretrain` did not write".to_owned())
    };
    match problem {
        Some(problem) => Err(anyhow!("{} {problem}", run.display()))
            .hint("choose another folder for the model, or move the existing one away")
            .usage(),
        None => Ok(()),
    }
}

/// Returns the folder of the run that trains the model in `out`.
fn run_folder(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| anyhow!("{} does not end in a folder name", out.display()));
    let name = config::plain_name(name.usage()?);
    Ok(out.with_file_name(format!("{}.run", name.trim_start_matches('.'))))
}

/// Returns the settings of a run that trains the student alone: one interval, no teacher. Unused settings have
/// their defaults, so that changing them does not keep the run from resuming.
fn settings_of_run(
    settings: &Settings,
    model: &Pretrain,
    folder: &Path,
    resumes: bool,
) -> Result<Settings> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let parent = folder.parent().unwrap_or(Path::new(""));
    let mut run = settings_of(settings, parent, &name, model.steps);
    (run.teacher, run.student, run.optimizer) = Default::default();
    (run.mixture, run.objective, run.recovery) = Default::default();
    run.method = Some(Method::Cpt);
    run.run.seed = model.seed;
    run.log.samples = false;
    run.pipeline.time_slicing = false;
    run.pipeline.threads = ThreadChoice::Manual;
    // Use the configuration's corpus, whatever seed and tokenizer folder the model has.
    run.corpus.tokenizer = settings.tokenizer_folder().cloned();
    run.corpus.seed = Some(settings.corpus.seed.unwrap_or(settings.run.seed));
    run.teacher.devices = vec![model.device.clone()];
    let initial = model.init_from.clone();
    run.student.model = Some(initial.unwrap_or_else(|| folder.join(INITIAL)));
    run.student.device = model.device.clone();
    run.student.threads = model.threads;
    if resumes {
        // Keep the number of threads, even on another machine: another number would change the last bits.
        run.student.threads = config::of_run(folder)?.student.threads;
    }
    run.optimizer.lr = model.lr;
    run.optimizer.weight_decay = model.weight_decay;
    run.lr_scheduler = LrScheduler {
        warmup_steps: model.warmup_steps,
        min_lr: model.min_lr,
        ..LrScheduler::default()
    };
    run.training.global_batch_size = model.global_batch_size;
    run.training.micro_batch_size = model.micro_batch_size;
    run.objective.name = ObjectiveName::Ce;
    run.objective.completion_only_loss = settings.objective.completion_only_loss;
    run.mixture.policy = match model.weights {
        Some(_) => MixturePolicy::Static,
        None => MixturePolicy::Natural,
    };
    run.mixture.weights = model.weights.clone();
    // The whole run, or the longest interval that the settings allow.
    let longest = (1_000_000_000 / model.global_batch_size).min(1_000_000);
    run.mixture.interval = model.steps.min(longest);
    run.recovery.shutdown_grace_seconds = settings.recovery.shutdown_grace_seconds;
    run.recovery.watchdog_seconds = settings.recovery.watchdog_seconds;
    Ok(run)
}

/// Writes what the run starts from: its record and the initial model.
fn begin(
    settings: &Settings,
    model: &Pretrain,
    name: &str,
    corpus: &Corpus,
    run: &Path,
    record: &str,
) -> Result<()> {
    let folder = RunFolder::open(run)?;
    if !holds(run, record) {
        // Write the record first, because it says which model this folder belongs to.
        ddk_files::write_atomically(&folder.path().join(RECORD), record.as_bytes())?;
    }
    if folder.path().join(INITIAL).exists() {
        return Ok(());
    }
    let vocabulary = corpus.tokenizer.vocabulary();
    match (&model.init_from, &model.architecture) {
        (Some(init), _) => {
            let size = (vocabulary, settings.corpus.sequence_length);
            let init = settings.local(init);
            fits("model", &init, &ModelConfig::read(&init)?, size)?;
        }
        (None, Some(shape)) => {
            let architecture = Architecture {
                vocab_size: vocabulary as i64,
                hidden_size: shape.hidden_size,
                intermediate_size: shape.intermediate_size,
                num_hidden_layers: shape.num_hidden_layers,
                num_attention_heads: shape.num_attention_heads,
                num_key_value_heads: shape.num_key_value_heads,
                max_position_embeddings: settings.corpus.sequence_length as i64,
                rope_theta: shape.rope_theta,
                tie_word_embeddings: shape.tie_word_embeddings,
            };
            let config = ModelConfig::llama(architecture, Some(corpus.tokenizer.end_token()))?;
            let initial = Model::random(config, model.seed, Device::Cpu)?;
            let export = Export::new(corpus.tokenizer.folder());
            initial.save(&folder.path().join(INITIAL), &export)?;
        }
        (None, None) => bail!("[pretrain.{name}] has neither `init_from` nor `architecture`"),
    }
    Ok(())
}

/// Returns whether a folder's record says that it was made from the same inputs.
fn holds(folder: &Path, record: &str) -> bool {
    fs::read_to_string(folder.join(RECORD)).is_ok_and(|made| made == record)
}

/// Returns the record of everything that the model depends on.
fn record(settings: &Settings, model: &Pretrain, corpus: &Corpus) -> Result<String> {
    let init = model.init_from.as_deref();
    let init = init
        .map(|init| hash_weights(&settings.local(init)))
        .transpose()?;
    let domains = corpus.domains.iter();
    let content: Vec<&str> = domains.map(|domain| domain.content_hash()).collect();
    let mut described = serde_json::to_value(model)?;
    if let Some(described) = described.as_object_mut() {
        described.shift_remove("threads");
    }
    let record = serde_json::json!({
        "model": described,
        "init": init,
        "corpus": content,
        "tokenizer": corpus.tokenizer.hash(),
        "sequence_length": settings.corpus.sequence_length,
    });
    Ok(serde_json::to_string_pretty(&record)?)
}
