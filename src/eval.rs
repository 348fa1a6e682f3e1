//! `ddk eval`: a model's perplexity on each domain.

use std::{collections::BTreeMap, fs, io::Write, sync::Arc};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{TokenizerFolder, compatible};
use ddk_model::Model;
use ddk_objective::default_chunk;
use ddk_torch::{Lane, parse_device};
use serde::Serialize;
use tch::Kind;

use crate::{cli, config, hint::Hint, prepare, wiring::Evaluation};

#[derive(Serialize)]
struct Evaluated {
    model: String,
    domains: BTreeMap<String, Domain>,
}

#[derive(Serialize)]
struct Domain {
    perplexity: f64,
    documents: usize,
    predictions: usize,
}

pub fn run(args: &cli::Eval, out: &mut dyn Write) -> Result<()> {
    let settings = config::load(&args.config)?.settings;
    let corpus = prepare::open(&settings)?;
    let own = TokenizerFolder::open(&args.model, settings.corpus.end_token.as_deref())
        .hint("a model's folder needs its tokenizer.json")?;
    compatible(&own, &corpus.tokenizer).hint(
        "the corpus was tokenized for another model: set corpus.tokenizer to this one's folder",
    )?;
    let validation = Arc::new(prepare::validation(&corpus)?);
    let names: Vec<String> = corpus
        .domains
        .iter()
        .map(|domain| domain.name().to_owned())
        .collect();
    if let Some(path) = &args.documents {
        let documents: BTreeMap<&String, _> = names.iter().zip(validation.iter()).collect();
        let text = serde_json::json!({ "vocabulary": corpus.tokenizer.vocabulary(), "domains": documents });
        fs::write(path, text.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let vocabulary = corpus.tokenizer.vocabulary() as i64;
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
    let model = Model::load(&args.model, device, Kind::Float)?;
    let perplexities = evaluation
        .perplexities(&model, &|| false)?
        .ok_or_else(|| anyhow!("the evaluation was cut off"))?;
    let domains = names.into_iter().zip(perplexities).zip(validation.iter());
    let evaluated = Evaluated {
        model: args.model.display().to_string(),
        domains: domains
            .map(|((name, perplexity), documents)| {
                let predictions = documents
                    .iter()
                    .map(|document| document.len().saturating_sub(1))
                    .sum();
                (
                    name,
                    Domain {
                        perplexity,
                        documents: documents.len(),
                        predictions,
                    },
                )
            })
            .collect(),
    };
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&evaluated)?)?;
        return Ok(());
    }
    let width = evaluated
        .domains
        .keys()
        .map(String::len)
        .max()
        .unwrap_or(0)
        .max(6);
    writeln!(
        out,
        "{:width$}  {:>10}  {:>9}  {:>11}",
        "domain", "perplexity", "documents", "predictions"
    )?;
    for (name, domain) in &evaluated.domains {
        let Domain {
            perplexity,
            documents,
            predictions,
        } = domain;
        writeln!(
            out,
            "{name:width$}  {perplexity:>10.3}  {documents:>9}  {predictions:>11}"
        )?;
    }
    Ok(())
}
