//! `ddk prepare`, and the prepared corpus that other commands open.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Result, anyhow};
use ddk_corpus::{
    DomainReport, DomainSource, PrepareOptions, PreparedDomain, TokenizerFolder, prepare, stale,
};
use ddk_settings::Settings;

use crate::{
    cli, config,
    hint::Hint,
    progress::{bar, say},
};

/// A prepared corpus: the domains sorted by name, and the tokenizer that made them.
pub struct Corpus {
    pub tokenizer: TokenizerFolder,
    pub domains: Vec<Arc<PreparedDomain>>,
    /// Records of each domain that could not be used.
    pub reports: Vec<DomainReport>,
}

pub fn run(args: &cli::Prepare) -> Result<()> {
    let settings = config::load(&args.config)?.settings;
    let (options, tokenizer) = options(&settings)?;
    let reports = make(&options, &tokenizer, args.force)?;
    for report in &reports {
        say(&describe(report));
    }
    Ok(())
}

/// Opens the corpus; prepares first what is missing or stale, and says why.
pub fn open(settings: &Settings) -> Result<Corpus> {
    let (options, tokenizer) = options(settings)?;
    for (domain, reason) in stale(&options, &tokenizer).hint(ADVICE)? {
        say(&format!("preparing {domain}: {reason}"));
    }
    let reports = make(&options, &tokenizer, false)?;
    let domains = reports
        .iter()
        .map(|report| {
            let domain =
                PreparedDomain::open(&options.folder, &report.domain, options.sequence_length)?;
            Ok(Arc::new(domain))
        })
        .collect::<Result<_>>()?;
    Ok(Corpus {
        tokenizer,
        domains,
        reports,
    })
}

const ADVICE: &str = "see [domains.*] and [corpus] in the configuration; `ddk config show --origin CONFIG` says where each value comes from";

fn make(
    options: &PrepareOptions,
    tokenizer: &TokenizerFolder,
    force: bool,
) -> Result<Vec<DomainReport>> {
    let bar = bar(
        0,
        "{msg} {bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left",
    );
    let reports = prepare(options, tokenizer, force, &mut |progress| {
        bar.set_message(progress.domain);
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    let reports = reports.hint(ADVICE)?;
    for report in reports
        .iter()
        .filter(|report| report.prepared && report.quarantined > 0)
    {
        say(&format!(
            "{}: {} records could not be used; they are listed in {}",
            report.domain,
            report.quarantined,
            quarantine(options, &report.domain).display()
        ));
    }
    Ok(reports)
}

fn quarantine(options: &PrepareOptions, domain: &str) -> PathBuf {
    options
        .folder
        .join(domain)
        .join(ddk_corpus::QUARANTINE_FILE)
}

/// What the corpus is made from, without making it.
pub fn options(settings: &Settings) -> Result<(PrepareOptions, TokenizerFolder)> {
    if settings.domains.is_empty() {
        return Err(anyhow!("the configuration has no domain"))
            .hint("add a table for each, for example:\n  [domains.math]\n  files = [\"data/math/*.jsonl\"]")
            .usage();
    }
    let corpus = &settings.corpus;
    let folder = corpus
        .tokenizer
        .as_ref()
        .or(settings.student.model.as_ref());
    let folder = folder
        .ok_or_else(|| {
            anyhow!("there is no tokenizer: neither `corpus.tokenizer` nor `student.model` is set")
        })
        .usage()?;
    let tokenizer = TokenizerFolder::open(folder, corpus.end_token.as_deref()).hint(
        "set corpus.tokenizer to a folder with a tokenizer.json (`ddk demo` makes the demo's)",
    )?;
    let domains = settings.domains.iter().map(|(name, domain)| DomainSource {
        name: name.clone(),
        files: domain.files.clone(),
        text_field: domain.text_field.clone(),
        only: domain.domain_field.clone().zip(domain.domain_value.clone()),
        max_bytes: domain.max_bytes,
    });
    let options = PrepareOptions {
        folder: corpus.folder.clone(),
        domains: domains.collect(),
        sequence_length: corpus.sequence_length,
        seed: settings.run.seed,
        validation_share: corpus.validation_share,
        validation_documents: corpus.validation_documents,
        max_bad_share: corpus.max_bad_share,
    };
    Ok((options, tokenizer))
}

fn describe(report: &DomainReport) -> String {
    format!(
        "{}: {} documents, {} tokens ({:.2} bytes each), {} rows; {} validation documents, {} duplicates left out{}",
        report.domain,
        report.documents,
        report.tokens,
        report.text_bytes as f64 / report.tokens.max(1) as f64,
        report.rows,
        report.validation_documents,
        report.duplicates,
        if report.prepared {
            ""
        } else {
            " (was prepared already)"
        },
    )
}

/// The validation documents of all domains.
pub fn validation(corpus: &Corpus) -> Result<Vec<Vec<Vec<u32>>>> {
    corpus
        .domains
        .iter()
        .map(|domain| Ok(domain.validation()?))
        .collect()
}

/// Each domain's share of the corpus' tokens.
pub fn natural_shares(corpus: &Corpus) -> Vec<f64> {
    let all: u64 = corpus.domains.iter().map(|domain| domain.tokens()).sum();
    corpus
        .domains
        .iter()
        .map(|domain| domain.tokens() as f64 / all as f64)
        .collect()
}
