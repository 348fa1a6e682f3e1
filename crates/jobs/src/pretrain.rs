//! `ddk pretrain`: a model from nothing, or further from a folder, with cross-entropy alone.
//!
//! Pretraining is a run without a teacher, so it has checkpoints, exact resume, signals, metrics and a live page. Its
//! folder is beside the model: `OUT.run`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Result, anyhow};
use ddk_engine::AdamWOptions;
use ddk_model::{Architecture, Export, Model, ModelConfig};
use ddk_run::RunFolder;
use ddk_settings::{Dtype, Method, MixturePolicy, ObjectiveName, Pretrain, Settings, ThreadChoice};
use tch::Device;

use crate::{
    args, config,
    faults::Faults,
    hint::Hint,
    phase::Phase,
    prepare::{self, Corpus, Outdated},
    progress::say,
    signals::Signals,
    train::{
        inputs::fits,
        prepared::Destination,
        run::{Ran, restart, settings_of, stand_alone},
    },
};

/// Beside the model and in the run folder: what the model is made from, so that it is made once.
const RECORD: &str = "pretrain.json";
/// In the run folder: the model before its first step.
const INITIAL: &str = "initial";

/// Makes the model of `[pretrain.NAME]`, unless it is there already.
///
/// # Errors
/// There is no such section, the folder holds something else, or training fails.
pub fn run(args: &args::Pretrain, signals: &Signals) -> Result<ExitCode> {
    let settings = config::load(&args.config)?.settings;
    let faults = Faults::parse(&settings.faults.plan)?;
    let stopped = model(&settings, &args.model, args.force, signals, &faults)?;
    Ok(stopped.unwrap_or(ExitCode::SUCCESS))
}

/// As [`run`]; returns the exit code if a signal stopped it.
pub(crate) fn model(
    settings: &Settings,
    name: &str,
    force: bool,
    signals: &Signals,
    faults: &Faults,
) -> Result<Option<ExitCode>> {
    let known: Vec<&str> = settings.pretrain.keys().map(String::as_str).collect();
    let model = settings
        .pretrain
        .get(name)
        .ok_or_else(|| {
            anyhow!(
                "the configuration has no [pretrain.{name}] (there are: {})",
                known.join(", ")
            )
        })
        .usage()?;
    // A finished model is not made again because a source has grown.
    let outdated = if model.out.join(RECORD).exists() && !force {
        Outdated::Kept
    } else {
        Outdated::AsSet
    };
    signals.begin(Phase::Prepare, faults)?;
    let corpus = prepare::open(settings, outdated)?;
    signals.begin(Phase::Hash, faults)?;
    let record = record(settings, model, &corpus)?;
    let run = run_folder(&model.out)?;
    let is_finished = run.join("summary.json").exists() || !RunFolder::holds_a_run(&run);
    if !force && is_finished && holds(&model.out, &record) {
        say(&format!("{name}: {} is there already", model.out.display()));
        return Ok(None);
    }
    if model.out.exists() && !model.out.join(RECORD).exists() {
        return Err(anyhow!(
            "{} holds something that `ddk pretrain` has not made",
            model.out.display()
        ))
        .hint(format!(
            "choose another folder for pretrain.{name}.out, or move that one away"
        ));
    }
    let advice = "move what is your own out of that folder";
    ddk_model::may_replace(&model.out, Some(RECORD)).hint(advice)?;
    if model.out.exists() && !force && !holds(&model.out, &record) {
        say(&format!(
            "{name}: {} was made by other settings or from other data, and is made anew",
            model.out.display()
        ));
    }
    let resumes =
        RunFolder::holds_a_run(&run) && holds(&run, &record) && !run.join("summary.json").exists();
    if run.exists() && !resumes {
        restart(&run)?;
    }
    let settings = settings_of_run(settings, model, &run);
    begin(&settings, model, name, &corpus, &run, &record)?;
    let destination = Destination {
        folder: model.out.clone(),
        record: (RECORD, record),
    };
    let code = match stand_alone(&settings, destination, signals)? {
        Ran::Stopped(code) => return Ok(Some(code)),
        Ran::Finished => None,
    };
    let summary = ddk_run::read::summary(&run)?;
    say(&format!(
        "{name}: {} steps, {:.0} s at {:.0} tokens/s, saved in {}; its report is {}",
        summary.steps,
        summary.seconds,
        summary.tokens_per_second,
        model.out.display(),
        run.join("report.html").display()
    ));
    Ok(code)
}

/// The folder of the run that makes the model in `out`.
fn run_folder(out: &Path) -> Result<PathBuf> {
    let name = out.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| anyhow!("{} is no name of a folder", out.display()));
    // As run.name is spelled.
    let letter = |letter: char| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => letter,
        _ => '-',
    };
    let name: String = name.usage()?.chars().map(letter).collect();
    Ok(out.with_file_name(format!("{name}.run")))
}

/// The settings of a run that trains the student alone: one interval, no teacher.
fn settings_of_run(settings: &Settings, model: &Pretrain, folder: &Path) -> Settings {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let parent = folder.parent().unwrap_or(Path::new(""));
    let mut run = settings_of(settings, parent, &name, model.steps);
    run.method = Some(Method::Cpt);
    run.run.seed = model.seed;
    run.run.take_turns = false;
    run.run.threads = ThreadChoice::Given;
    // The corpus is the configuration's, whatever seed and tokenizer folder the model has.
    let tokenizer = settings.corpus.tokenizer.as_ref();
    run.corpus.tokenizer = tokenizer.or(settings.student.model.as_ref()).cloned();
    run.corpus.seed = Some(settings.corpus.seed.unwrap_or(settings.run.seed));
    run.teacher.model = None;
    run.teacher.devices = vec![model.device.clone()];
    run.teacher.lanes = 1;
    run.teacher.threads = 1;
    let adamw = AdamWOptions::default();
    run.student.model = Some(model.init.clone().unwrap_or_else(|| folder.join(INITIAL)));
    run.student.device.clone_from(&model.device);
    run.student.dtype = Dtype::Fp32;
    run.student.recompute = false;
    run.student.threads = model.threads;
    run.student.lr = model.lr;
    run.student.lr_end = model.lr_end;
    run.student.warmup_steps = model.warmup_steps;
    run.student.weight_decay = model.weight_decay;
    run.student.beta1 = adamw.beta1;
    run.student.beta2 = adamw.beta2;
    run.student.epsilon = adamw.epsilon;
    run.student.clip_norm = 1.0;
    run.batch.rows = model.rows;
    run.batch.micro_rows = model.micro_rows;
    run.objective.name = ObjectiveName::Ce;
    run.objective.chunk = None;
    run.mixture.policy = if model.shares.is_some() {
        MixturePolicy::Static
    } else {
        MixturePolicy::Natural
    };
    run.mixture.shares.clone_from(&model.shares);
    run.mixture.interval = model.steps;
    run.mixture.lag = 0;
    run.mixture.max_passes = None;
    run
}

/// Writes what the run starts from: the model before its first step, and the record last.
fn begin(
    settings: &Settings,
    model: &Pretrain,
    name: &str,
    corpus: &Corpus,
    run: &Path,
    record: &str,
) -> Result<()> {
    if holds(run, record) {
        return Ok(());
    }
    let folder = RunFolder::open(run)?;
    let vocabulary = corpus.tokenizer.vocabulary() as i64;
    match (&model.init, &model.architecture) {
        (Some(init), _) => {
            let size = (vocabulary, settings.corpus.sequence_length);
            fits("model", init, &ModelConfig::read(init)?, size)?;
        }
        (None, Some(shape)) => {
            let architecture = Architecture {
                vocab_size: vocabulary,
                hidden_size: shape.hidden_size,
                intermediate_size: shape.intermediate_size,
                num_hidden_layers: shape.layers,
                num_attention_heads: shape.heads,
                num_key_value_heads: shape.kv_heads,
                max_position_embeddings: settings.corpus.sequence_length as i64,
                rope_theta: shape.rope_theta,
                tie_word_embeddings: shape.tie,
            };
            let config = ModelConfig::llama(architecture, Some(corpus.tokenizer.end_token()))?;
            let initial = Model::random(config, model.seed, Device::Cpu)?;
            let export = Export::new(corpus.tokenizer.folder());
            initial.save(&folder.path().join(INITIAL), &export)?;
        }
        (None, None) => {
            return Err(anyhow!(
                "[pretrain.{name}] has neither `init` nor `architecture`"
            ));
        }
    }
    ddk_files::write_atomically(&folder.path().join(RECORD), record.as_bytes())?;
    Ok(())
}

/// Whether a folder's record says that it was made from the same.
fn holds(folder: &Path, record: &str) -> bool {
    let parsed = |text: &str| {
        let mut record: serde_json::Value = serde_json::from_str(text).ok()?;
        // Another number of threads makes the same model to rounding. Earlier versions recorded it.
        let model = record.get_mut("model")?.as_object_mut()?;
        model.remove("threads");
        Some(record)
    };
    let made = fs::read_to_string(folder.join(RECORD)).ok();
    made.and_then(|made| parsed(&made))
        .is_some_and(|made| parsed(record) == Some(made))
}

/// All that the model depends on.
fn record(settings: &Settings, model: &Pretrain, corpus: &Corpus) -> Result<String> {
    let init = match &model.init {
        Some(folder) => Some(weights_hash(folder)?),
        None => None,
    };
    let content: Vec<&str> = corpus
        .domains
        .iter()
        .map(|domain| domain.content_hash())
        .collect();
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

fn weights_hash(folder: &Path) -> Result<String> {
    Ok(ddk_model::Weights::open(folder)?.hash())
}
