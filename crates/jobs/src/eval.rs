//! `ddk eval`: a model's perplexity on each domain.

use std::{collections::BTreeMap, fs, io::Write, path::Path};

use anyhow::{Context, Result};
use ddk_corpus::{Sequence, TokenizerFolder, compatible};
use ddk_model::{Model, ModelConfig};
use ddk_report::document::Table;
use ddk_torch::ComputeContext;
use serde::Serialize;

use crate::{
    args, config,
    findings::fits,
    hint::Hint,
    hub::{self, Wanted},
    output::print_json,
    phase::Phase,
    prepare,
    progress::Reporter,
    signals::Signals,
    wiring,
};

#[derive(Serialize)]
struct Evaluated {
    model: String,
    /// The second model, with `--baseline`.
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<String>,
    domains: BTreeMap<String, Domain>,
}

#[derive(Serialize)]
struct Domain {
    perplexity: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<f64>,
    documents: usize,
    predictions: u64,
}

/// Prints the perplexity of one or two models on each domain.
///
/// # Errors
/// If the corpus cannot be opened, or if a model does not fit it.
pub fn run(args: &args::Eval, signals: &Signals, out: &mut dyn Write) -> Result<()> {
    let settings = config::begin(&args.config.of_runs(), signals)?;
    let pinned = hub::pinned(&settings)?;
    let settings = hub::located(&settings, &[Wanted::Corpus], &pinned, Some(signals))?;
    let first = hub::model(&args.model)?;
    let second = args.baseline.as_deref().map(hub::model).transpose()?;
    // A wrong folder is known before what takes time.
    let models = std::iter::once(&first).chain(&second);
    let models = models.map(|folder| Ok((folder, ModelConfig::read(folder)?)));
    let models = models.collect::<Result<Vec<_>>>()?;
    signals.begin(Phase::Prepare)?;
    let corpus = prepare::open(&settings, prepare::Outdated::Kept)?;
    let vocabulary = corpus.tokenizer.vocabulary();
    let size = (vocabulary, settings.corpus.sequence_length);
    for (folder, config) in &models {
        let own = TokenizerFolder::open(folder, settings.corpus.eos_token.as_deref()).hint(
            "for a run, name its student, RUN/student; for another model, add its tokenizer.json",
        )?;
        compatible(&own, &corpus.tokenizer).hint(
            "the corpus was tokenized for another model: set corpus.tokenizer to this one's folder",
        )?;
        fits("model", folder, config, size)?;
    }
    let evaluation = prepare::evaluation(&settings, &corpus)?;
    let validation = &evaluation.validation;
    if let Some(path) = &args.dump_token_ids {
        let tokens = validation.iter().map(|documents| -> Vec<&[u32]> {
            let documents = documents.iter();
            documents.map(|document| &document.tokens[..]).collect()
        });
        let documents: BTreeMap<&str, _> = corpus.names().zip(tokens).collect();
        let text = serde_json::json!({ "vocabulary": vocabulary, "domains": documents });
        fs::write(path, text.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    signals.begin(Phase::Evaluate)?;
    let _lane = ComputeContext::enter(std::thread::available_parallelism().map_or(1, usize::from));
    let reporter = Reporter::new(settings.log.interval_seconds);
    let measure = |folder: &Path| -> Result<Vec<f64>> {
        let model = Model::load(folder, &wiring::student_placement(&settings.student)?)?;
        let phase = format!("evaluation of {}", folder.display());
        let meter = reporter.meter(&phase, "documents");
        let tell = |done, total| {
            reporter.report(&meter.at(done, total));
            false
        };
        let perplexities = evaluation.perplexities(&model, &tell)?;
        perplexities.context("the evaluation was interrupted")
    };
    let perplexities = measure(&first)?;
    let against = second.as_deref().map(measure).transpose()?;
    let domain = |(index, name): (usize, &str)| {
        let documents = &validation[index];
        let domain = Domain {
            perplexity: perplexities[index],
            baseline: against.as_ref().map(|other| other[index]),
            documents: documents.len(),
            predictions: documents.iter().map(Sequence::num_targets).sum(),
        };
        (name.to_owned(), domain)
    };
    let shown = |folder: &Path| folder.display().to_string();
    let evaluated = Evaluated {
        model: shown(&args.model),
        baseline: args.baseline.as_deref().map(shown),
        domains: corpus.names().enumerate().map(domain).collect(),
    };
    if args.json {
        return print_json(&evaluated, out);
    }
    print(&evaluated, out)
}

fn print(evaluated: &Evaluated, out: &mut dyn Write) -> Result<()> {
    let mut header = vec!["domain", "perplexity", "documents", "predictions"];
    if let Some(other) = &evaluated.baseline {
        writeln!(out, "first: {}\nsecond: {other}\n", evaluated.model)?;
        header.splice(1..2, ["first's perplexity", "second's perplexity", "ratio"]);
    }
    let mut table = Table::new(header);
    for (name, domain) in &evaluated.domains {
        let mut row = vec![name.clone(), format!("{:.3}", domain.perplexity)];
        if let Some(other) = domain.baseline {
            let ratio = domain.perplexity / other;
            row.extend([other, ratio].map(|number| format!("{number:.3}")));
        }
        row.extend([domain.documents.to_string(), domain.predictions.to_string()]);
        table.row(row);
    }
    Ok(write!(out, "{table}")?)
}
