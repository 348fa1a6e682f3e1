//! `ddk pretrain`: a model from nothing, or further from a folder, with cross-entropy alone.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use ddk_corpus::Sequence;
use ddk_engine::{AdamWOptions, Schedule, Student, StudentOptions};
use ddk_model::{Architecture, Export, Model, ModelConfig, Placement};
use ddk_objective::{Objective, default_chunk};
use ddk_settings::{Pretrain, Settings};
use ddk_torch::{Lane, parse_device};
use tch::Kind;

use crate::{
    args, config,
    faults::Faults,
    hint::Hint,
    phase::Phase,
    prepare::{self, Corpus, Outdated},
    progress::{bar, say},
    rows::{MixedRows, predictions},
    signals::Signals,
    train::inputs::fits,
};

/// Beside the model: what it was made from, so that it is made once.
const RECORD: &str = "pretrain.json";
/// Where there is no terminal to draw a bar on, a line so often.
const SAY_EVERY: Duration = Duration::from_secs(15);

/// Makes the model of `[pretrain.NAME]`, unless it is there already.
///
/// # Errors
/// There is no such section, the folder holds something else, or training fails.
pub fn run(args: &args::Pretrain, signals: &Signals) -> Result<()> {
    let settings = config::load(&args.config)?.settings;
    let faults = Faults::parse(&settings.faults.plan)?;
    model(&settings, &args.model, args.force, signals, &faults)
}

/// Makes the model of `[pretrain.NAME]`, unless it is there already.
pub fn model(
    settings: &Settings,
    name: &str,
    force: bool,
    signals: &Signals,
    faults: &Faults,
) -> Result<()> {
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
    // A model that is there is not made again because a source has grown.
    let outdated = match model.out.join(RECORD).exists() && !force {
        true => Outdated::Kept,
        false => Outdated::AsSet,
    };
    signals.begin(Phase::Prepare, faults)?;
    let corpus = prepare::open(settings, outdated)?;
    signals.begin(Phase::Hash, faults)?;
    let record = record(settings, model, &corpus)?;
    if !force && fs::read_to_string(model.out.join(RECORD)).is_ok_and(|made| made == record) {
        say(&format!("{name}: {} is there already", model.out.display()));
        return Ok(());
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
    if model.out.exists() && !force {
        say(&format!(
            "{name}: {} was made by other settings or from other data, and is made anew",
            model.out.display()
        ));
    }
    signals.begin(Phase::Pretrain, faults)?;
    // A thread of its own: libtorch's number of threads is the calling thread's.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("pretrain".to_owned());
        let work = || train(settings, model, name, &corpus, &record);
        thread
            .spawn_scoped(scope, work)?
            .join()
            .map_err(|_| anyhow!("training panicked"))?
    })?;
    signals.begin(Phase::Leave, faults)
}

/// Trains, and saves the model together with its `record`: the one is never there without the other.
fn train(
    settings: &Settings,
    model: &Pretrain,
    name: &str,
    corpus: &Corpus,
    record: &str,
) -> Result<()> {
    let _lane = Lane::enter(model.threads);
    let device = parse_device(&model.device)?;
    let vocabulary = corpus.tokenizer.vocabulary() as i64;
    let start = match (&model.init, &model.architecture) {
        (Some(folder), _) => {
            let size = (vocabulary, settings.corpus.sequence_length);
            fits("model", folder, &ModelConfig::read(folder)?, size)?;
            Model::load(folder, &Placement::on(device, Kind::Float))?
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
            Model::random(config, model.seed, device)?
        }
        (None, None) => {
            return Err(anyhow!(
                "[pretrain.{name}] has neither `init` nor `architecture`"
            ));
        }
    };
    let options = StudentOptions {
        objective: Objective::cross_entropy(),
        vocabulary,
        chunk: default_chunk(vocabulary, device),
        recompute: false,
        adamw: AdamWOptions {
            weight_decay: model.weight_decay,
            ..AdamWOptions::default()
        },
        clip_norm: 1.0,
        schedule: Schedule {
            peak: model.lr,
            end: model.lr_end,
            warmup_steps: model.warmup_steps,
            total_steps: model.steps,
        },
        filters: None,
    };
    let shares = shares(model, corpus);
    let mut rows = MixedRows::new(
        &corpus.domains,
        &shares,
        model.seed,
        model.rows,
        model.steps,
    );
    let mut student = Student::new(start, options, None)?;
    let (began, mut tokens) = (Instant::now(), 0);
    let bar = bar(model.steps, "{msg} {bar:30} step {pos}/{len}, {eta} left");
    bar.set_message(name.to_owned());
    let (mut loss, mut said) = (f64::NAN, Instant::now());
    for step in 1..=model.steps {
        let batch = rows.step()?;
        let denominator = predictions(&batch);
        let views: Vec<&Sequence> = batch.iter().collect();
        let mut sum = 0.0;
        for micro in views.chunks(model.micro_rows as usize) {
            sum += student.accumulate(micro, None, denominator)?.ce_sum;
        }
        let update = student.update(step)?;
        if let Some(reason) = update.skipped {
            return Err(anyhow!("step {step} of {name}: {reason}"))
                .hint(format!("lower pretrain.{name}.lr"));
        }
        loss = sum / denominator;
        tokens += batch.iter().map(|row| row.tokens.len()).sum::<usize>();
        bar.set_position(step);
        if bar.is_hidden() && said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            say(&format!(
                "{name}: step {step}/{}, loss {loss:.3}",
                model.steps
            ));
        }
    }
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    student.model().save(
        &model.out,
        &Export {
            beside: &[(RECORD, record)],
            ..Export::new(corpus.tokenizer.folder())
        },
    )?;
    say(&format!(
        "{name}: {} steps, last loss {loss:.3}, {seconds:.0} s at {:.0} tokens/s, saved in {}",
        model.steps,
        tokens as f64 / seconds,
        model.out.display()
    ));
    Ok(())
}

fn shares(model: &Pretrain, corpus: &Corpus) -> Vec<f64> {
    let Some(shares) = &model.shares else {
        return prepare::natural_shares(corpus);
    };
    let sum: f64 = shares.values().sum();
    let share = |name: &str| shares.get(name).copied().unwrap_or(0.0) / sum;
    corpus
        .domains
        .iter()
        .map(|domain| share(domain.name()))
        .collect()
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
    let record = serde_json::json!({
        "model": model,
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
