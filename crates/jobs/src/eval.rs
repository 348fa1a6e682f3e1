//! `ddk eval`: a model's perplexity on each domain.

use std::{collections::BTreeMap, fs, io::Write, path::Path, sync::Arc};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{Sequence, TokenizerFolder, compatible};
use ddk_engine::Evaluation;
use ddk_model::{Model, ModelConfig, Placement};
use ddk_objective::default_chunk;
use ddk_telemetry::{Clock, Meter};
use ddk_torch::{Lane, parse_device};
use serde::Serialize;
use tch::Kind;

use crate::{
    args, config,
    hint::Hint,
    phase::Phase,
    prepare::{self, Outdated},
    progress::{Pace, say},
    signals::Signals,
    train::inputs::fits,
    wiring,
};

#[derive(Serialize)]
struct Evaluated {
    model: String,
    /// The model beside it, with `--against`.
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<String>,
    domains: BTreeMap<String, Domain>,
}

#[derive(Serialize)]
struct Domain {
    perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    against: Option<f64>,
    documents: usize,
    predictions: u64,
}

/// Prints the perplexity of one or two models on each domain.
///
/// # Errors
/// The corpus cannot be opened, or a model does not fit it.
pub fn run(args: &args::Eval, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let settings = config::begin(&args.config, signals)?;
    signals.begin(Phase::Prepare)?;
    let corpus = prepare::open(&settings, Outdated::Kept)?;
    for folder in std::iter::once(&args.model).chain(&args.against) {
        let own = TokenizerFolder::open(folder, settings.corpus.end_token.as_deref())
            .hint("a model's folder needs its tokenizer.json")?;
        compatible(&own, &corpus.tokenizer).hint(
            "the corpus was tokenized for another model: set corpus.tokenizer to this one's folder",
        )?;
    }
    let vocabulary = corpus.tokenizer.vocabulary() as i64;
    for folder in std::iter::once(&args.model).chain(&args.against) {
        let size = (vocabulary, settings.corpus.sequence_length);
        fits("model", folder, &ModelConfig::read(folder)?, size)?;
    }
    let validation = Arc::new(prepare::validation(&corpus)?);
    let names: Vec<String> = corpus
        .domains
        .iter()
        .map(|domain| domain.name().to_owned())
        .collect();
    if let Some(path) = &args.documents {
        let tokens = validation.iter().map(|documents| -> Vec<&[u32]> {
            documents
                .iter()
                .map(|document| &document.tokens[..])
                .collect()
        });
        let documents: BTreeMap<&String, _> = names.iter().zip(tokens).collect();
        let text = serde_json::json!({ "vocabulary": corpus.tokenizer.vocabulary(), "domains": documents });
        fs::write(path, text.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    signals.begin(Phase::Evaluate)?;
    let device = parse_device(&settings.student.device)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let _lane = Lane::enter(cores);
    let evaluation = Evaluation {
        validation: Arc::clone(&validation),
        batch_rows: settings.evaluation.batch_rows,
        vocabulary,
        chunk: settings
            .objective
            .chunk
            .unwrap_or_else(|| default_chunk(vocabulary, device)),
    };
    let clock = Clock::system();
    let pace = Pace::new(settings.log.line_seconds, &clock);
    let measure = |folder: &Path| -> Result<Vec<f64>> {
        let mut placement = Placement::on(device, Kind::Float);
        placement.compute = wiring::kind(settings.student.dtype);
        let model = Model::load(folder, &placement)?;
        let phase = format!("evaluation of {}", folder.display());
        let meter = Meter::start(&phase, "documents", &clock);
        let tell = |done, total| {
            let progress = meter.at(done, total);
            if pace.is_due(&progress) {
                say(&progress.to_string());
            }
            false
        };
        evaluation
            .perplexities(&model, &tell)?
            .ok_or_else(|| anyhow!("the evaluation was cut off"))
    };
    let perplexities = measure(&args.model)?;
    let against = args.against.as_deref().map(measure).transpose()?;
    let domains = names.into_iter().enumerate();
    let evaluated = Evaluated {
        model: args.model.display().to_string(),
        against: args
            .against
            .as_ref()
            .map(|folder| folder.display().to_string()),
        domains: domains
            .map(|(index, name)| {
                let documents = &validation[index];
                let domain = Domain {
                    perplexity: perplexities[index],
                    against: against.as_ref().map(|other| other[index]),
                    documents: documents.len(),
                    predictions: documents.iter().map(Sequence::num_targets).sum(),
                };
                (name, domain)
            })
            .collect(),
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&evaluated)?)?;
        return Ok(());
    }
    print(&evaluated, out)?;
    Ok(())
}

fn print(evaluated: &Evaluated, out: &mut dyn Write) -> std::io::Result<()> {
    let names = evaluated.domains.keys().map(String::len);
    let width = names.max().unwrap_or(0).max(6);
    let other = match &evaluated.against {
        Some(other) => {
            writeln!(out, "first: {}\nsecond: {other}\n", evaluated.model)?;
            format!("  {:>10}  {:>6}", "second", "ratio")
        }
        None => String::new(),
    };
    let first = match evaluated.against {
        Some(_) => "first",
        None => "perplexity",
    };
    writeln!(
        out,
        "{:width$}  {first:>10}{other}  {:>9}  {:>11}",
        "domain", "documents", "predictions"
    )?;
    for (name, domain) in &evaluated.domains {
        let Domain {
            perplexity,
            against,
            documents,
            predictions,
        } = domain;
        let other = against.map_or_else(String::new, |other| {
            format!("  {other:>10.3}  {:>6.3}", perplexity / other)
        });
        writeln!(
            out,
            "{name:width$}  {perplexity:>10.3}{other}  {documents:>9}  {predictions:>11}"
        )?;
    }
    Ok(())
}
