//! `ddk prepare`, and the prepared corpus that other commands open.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{
    DomainReport, DomainSource, Limits, PrepareOptions, PreparedDomain, Progress,
    QUARANTINED_PER_FILE, Sequence, SequenceOptions, Stale, Template, TokenSource, TokenizerFolder,
    as_prepared, prepare, stale, verify,
};
use ddk_engine::Evaluation;
use ddk_run::view::counted;
use ddk_settings::{OnStale, Settings};

use crate::{
    args, chat, config,
    hint::Hint,
    hub::{self, Wanted},
    phase::Phase,
    progress::{Reporter, say},
    signals::Signals,
    sources::{self, Read},
    train::{inputs::Inputs, options::chunk},
};

pub use crate::sources::{advise, fields_hint};

/// A prepared corpus: the domains, and the tokenizer that they were prepared with.
pub struct Corpus {
    /// The tokenizer of all domains.
    pub tokenizer: TokenizerFolder,
    /// The domains, sorted by name.
    pub domains: Vec<Arc<PreparedDomain>>,
    /// A report on each domain.
    pub reports: Vec<DomainReport>,
}

impl Corpus {
    /// Names of the domains.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().map(|domain| domain.name())
    }
}

/// Prepares the corpus, or verifies the prepared files.
///
/// # Errors
/// If a source cannot be read, or if a prepared file differs from its manifest.
pub fn run(args: &args::Prepare, signals: &Signals) -> Result<()> {
    let settings = config::begin(&args.config, signals)?;
    let settings = hub::located(
        &settings,
        &[Wanted::Corpus],
        &hub::pinned(&settings)?,
        Some(signals),
    )?;
    let (options, tokenizer) = options(&settings)?;
    if args.verify {
        signals.begin(Phase::Verify)?;
        for (domain, bytes) in verify(&options)? {
            say(&format!("{domain}: {:.1} MB verified", bytes as f64 / 1e6));
        }
        return Ok(());
    }
    signals.begin(Phase::Prepare)?;
    let began = Instant::now();
    let read = if args.force { Read::Every } else { Read::Stale };
    sources::look(&options, &tokenizer, read).usable()?;
    let reports = make(&options, &tokenizer, args.force)?;
    let seconds = began.elapsed().as_secs_f64();
    for report in &reports {
        say(&describe(report));
    }
    let made = reports.iter().filter(|report| report.prepared);
    let (bytes, tokens) = made.fold((0, 0), |(bytes, tokens), report| {
        (bytes + report.text_bytes, tokens + report.tokens)
    });
    if bytes > 0 {
        say(&format!(
            "{:.1} MB in {seconds:.1} s: {:.2} MB/s, {:.0} tokens/s",
            bytes as f64 / 1e6,
            bytes as f64 / 1e6 / seconds,
            tokens as f64 / seconds
        ));
    }
    Ok(())
}

/// What to do with a stale domain: one whose sources or settings changed since it was prepared.
#[derive(Debug, Clone, Copy)]
pub enum Outdated<'a> {
    /// Follow `corpus.on_stale`.
    AsSet,
    /// Use it as it is, with a warning. A read-only command must not replace data that a run may need.
    Kept,
    /// Like [`Self::Kept`], if the finished run in this folder was trained on it as prepared.
    KeptFor(&'a Path),
    /// Fail if the run in this folder was trained on it as prepared.
    NeededBy(&'a Path),
}

impl Outdated<'_> {
    /// Returns whether to use a domain as it is prepared.
    fn keeps(self, stale: &Stale) -> Result<bool> {
        let Some(prepared) = &stale.replaces else {
            return Ok(false);
        };
        let made = |run: &Path| Ok(Inputs::of_run(run)?.has(&stale.domain, prepared));
        match self {
            Self::AsSet => Ok(false),
            Self::Kept => Ok(true),
            Self::KeptFor(run) => made(run),
            Self::NeededBy(run) if !made(run)? => Ok(false),
            Self::NeededBy(run) => Err(anyhow!(
                "{} was trained on the prepared domain `{}`, which is stale: {}",
                run.display(),
                stale.domain,
                stale.reason
            ))
            .hint("to continue on the prepared data, pass --set corpus.on_stale=use (restore the tokenizer first if it \
                   has changed); to start a run on the new data, choose another corpus.dir")
            .usage(),
        }
    }
}

/// Checks that preparing the corpus would not replace data that the run in this folder was trained on.
///
/// # Errors
/// If it would, or if the settings, a source or the run's `inputs.json` cannot be used.
pub fn keep_for(run: &Path, settings: &Settings) -> Result<()> {
    if settings.corpus.on_stale != OnStale::Prepare {
        return Ok(());
    }
    let pinned = hub::revisions_of(run)?;
    let settings = &hub::located(settings, &[Wanted::Corpus], &pinned, None)?;
    let (options, tokenizer) = options(settings)?;
    for stale in stale(&options, &tokenizer).map_err(advise)? {
        Outdated::NeededBy(run).keeps(&stale)?;
    }
    Ok(())
}

/// Opens the corpus. First prepares missing and stale domains according to `corpus.on_stale`, and reports why.
///
/// # Errors
/// If a domain is stale and must not be replaced, if it was prepared with another tokenizer, or if it cannot be
/// prepared or read.
pub fn open(settings: &Settings, outdated: Outdated<'_>) -> Result<Corpus> {
    let (options, tokenizer) = options(settings)?;
    let reports = match settings.corpus.on_stale {
        OnStale::Use => take(&options)?,
        on_stale => {
            let (mut kept, mut made) = (Vec::new(), Vec::new());
            // The second look reports the problems, together with those in the records.
            for (stale, _) in sources::look(&options, &tokenizer, Read::Nothing).stale {
                let (domain, reason) = (&stale.domain, &stale.reason);
                if on_stale == OnStale::Error {
                    return Err(anyhow!("the prepared domain `{domain}` is stale: {reason}"))
                        .hint("run `ddk prepare` with this configuration, or set corpus.on_stale = \"use\" to \
                               use it as it is");
                }
                if outdated.keeps(&stale)? {
                    say(&format!(
                        "warning: using the prepared {domain} as it is, although {reason}; `ddk prepare` updates it"
                    ));
                    kept.push(stale.domain);
                } else {
                    made.push(format!("preparing {domain} ({reason})"));
                }
            }
            let mut others = options.clone();
            others.domains.retain(|domain| !kept.contains(&domain.name));
            sources::look(&others, &tokenizer, Read::Stale).usable()?;
            made.iter().for_each(|line| say(line));
            let reports = make(&others, &tokenizer, false)?;
            if kept.is_empty() {
                reports
            } else {
                take(&options)?
            }
        }
    };
    let sequence_options = sequence_options(settings);
    let mut domains = Vec::new();
    for DomainReport { domain: name, .. } in &reports {
        let domain = PreparedDomain::open(&options.folder, name, sequence_options)?;
        if domain.tokenizer_hash() != tokenizer.hash() {
            return Err(anyhow!(
                "the domain `{name}` was prepared with another tokenizer"
            ))
            .hint("run `ddk prepare` with this configuration");
        }
        domains.push(Arc::new(domain));
    }
    Ok(Corpus {
        tokenizer,
        domains,
        reports,
    })
}

/// Uses the corpus as it is prepared.
fn take(options: &PrepareOptions) -> Result<Vec<DomainReport>> {
    // Waiting is its only progress.
    as_prepared(options, &mut |_| say_waiting(options)).map_err(advise)
}

fn say_waiting(options: &PrepareOptions) {
    say(&format!(
        "another process is preparing {}: waiting for it",
        options.folder.display()
    ));
}

fn make(
    options: &PrepareOptions,
    tokenizer: &TokenizerFolder,
    force: bool,
) -> Result<Vec<DomainReport>> {
    let reporter = Reporter::new(5.0);
    let mut meter = reporter.meter("preparing", "kB");
    let reports = prepare(options, tokenizer, force, &mut |progress: Progress| {
        if progress.waiting {
            return say_waiting(options);
        }
        let phase = format!("{} {}", progress.phase, progress.domain);
        if meter.phase() != phase {
            meter = reporter.meter(&phase, "kB");
        }
        reporter.report(&meter.at(progress.bytes >> 10, progress.total_bytes >> 10));
    });
    let reports = reports.map_err(|error| sources::advise_for(options, error))?;
    for (domain, report) in options.domains.iter().zip(&reports) {
        if report.prepared && domain.chat.is_some() {
            let sample = ddk_corpus::sample(domain).map_err(advise)?;
            if let Some(warning) = chat::rewritten(&domain.name, &sample) {
                say(&format!("warning: {warning}"));
            }
        }
    }
    let unclean = |report: &&DomainReport| report.prepared && report.quarantined > 0;
    for report in reports.iter().filter(unclean) {
        say(&format!(
            "{}: {} could not be used, listed in {} (at most {QUARANTINED_PER_FILE} of each file)",
            report.domain,
            counted(report.quarantined, "record"),
            quarantine(&options.folder, &report.domain).display()
        ));
    }
    Ok(reports)
}

/// Returns the path to the list of a domain's unusable records.
pub(crate) fn quarantine(folder: &Path, domain: &str) -> PathBuf {
    folder.join(domain).join(ddk_corpus::QUARANTINE_FILE)
}

/// Returns the options and the tokenizer for preparing the corpus, without preparing it.
///
/// # Errors
/// If the settings name no domain or no tokenizer, if the tokenizer cannot be opened, or if a template is invalid.
pub fn options(settings: &Settings) -> Result<(PrepareOptions, TokenizerFolder)> {
    if settings.domains.is_empty() {
        return Err(anyhow!("the configuration defines no domains"))
            .hint("add one table per domain, for example:\n  [domains.math]\n  files = [\"data/math/*.jsonl\"]")
            .usage();
    }
    let corpus = &settings.corpus;
    let folder = settings
        .tokenizer_folder()
        .context("there is no tokenizer: neither `corpus.tokenizer` nor `student.model` is set")
        .usage()?;
    let folder = settings.local(folder);
    let tokenizer = TokenizerFolder::open(&folder, corpus.eos_token.as_deref()).hint(
        "set corpus.tokenizer to a folder with a tokenizer.json (`ddk demo` writes the demo's)",
    )?;
    let (mut domains, mut problems, mut template) = (Vec::new(), Vec::new(), None);
    for (name, domain) in &settings.domains {
        let made = source(settings, name, domain, &tokenizer).and_then(|source| {
            let chat = chat::of_domain(domain, &tokenizer, &mut template)?;
            Ok(DomainSource { chat, ..source })
        });
        match made {
            Ok(source) => domains.push(source),
            Err(problem) => problems.push(problem),
        }
    }
    sources::all(problems, "domains have a wrong template")?;
    let options = PrepareOptions {
        folder: corpus.dir.clone(),
        domains,
        packing: corpus.packing,
        sequence_length: corpus.sequence_length,
        seed: corpus.seed.unwrap_or(settings.run.seed),
        validation_split: corpus.validation_split,
        batch_bytes: 4 << 20,
        documents_in_memory: 1 << 20,
        validation_fraction: corpus.validation_fraction,
        validation_documents: corpus.validation_documents,
        max_bad_fraction: corpus.max_bad_fraction,
    };
    Ok((options, tokenizer))
}

fn source(
    settings: &Settings,
    name: &str,
    domain: &ddk_settings::Domain,
    corpus: &TokenizerFolder,
) -> Result<DomainSource> {
    let template = |key: &str, source: &str| {
        Template::parse(source)
            .map_err(|wrong| anyhow!("`domains.{name}.{key}` is \"{source}\": {wrong}"))
            .usage()
    };
    let prompt = domain.prompt_template.as_ref();
    let prompt = prompt.map(|prompt| template("prompt_template", prompt));
    let made_by = domain.tokenizer.as_ref();
    let tokens = made_by.map(|tokenizer| TokenSource {
        field: domain.tokens_field.clone(),
        tokenizer: settings.local(tokenizer),
        vocabulary: corpus.vocabulary(),
    });
    Ok(DomainSource {
        name: name.to_owned(),
        files: settings.local_files(&domain.files),
        validation_files: settings.local_files(&domain.validation_files),
        format: domain.format,
        text: template("text_template", &domain.text_template)?,
        prompt: prompt.transpose()?,
        chat: None,
        tokens,
        only: domain.filter_field.clone().zip(domain.filter_value.clone()),
        limits: Limits {
            bytes: domain.max_bytes,
            documents: domain.max_documents,
            tokens: domain.max_tokens,
            shortest: domain.min_document_bytes,
            longest: domain.max_document_bytes,
        },
    })
}

/// Returns how to read sequences of the corpus.
pub fn sequence_options(settings: &Settings) -> SequenceOptions {
    SequenceOptions {
        packing: settings.corpus.packing,
        sequence_length: settings.corpus.sequence_length,
        completion_only_loss: settings.objective.completion_only_loss,
    }
}

/// Describes a domain on one line.
pub fn describe(report: &DomainReport) -> String {
    let made = report.prepared;
    let left_out = [
        (report.duplicates, "duplicate"),
        (report.short, "short document"),
    ];
    let left_out = left_out.iter().filter(|(count, _)| *count > 0);
    let left_out: Vec<String> = left_out
        .map(|(count, what)| counted(*count, what))
        .collect();
    let left_out = match &left_out[..] {
        [] => String::new(),
        all => format!("; left out {}", all.join(" and ")),
    };
    format!(
        "{}: {}, {} ({:.2} bytes each), {}; {}{}{left_out}{}",
        report.domain,
        counted(report.documents, "document"),
        counted(report.tokens, "token"),
        report.text_bytes as f64 / report.tokens.max(1) as f64,
        counted(report.rows, "sequence"),
        counted(report.validation_documents, "validation document"),
        match report.spare {
            0 => String::new(),
            spare => format!(" and {spare} more set aside but not used"),
        },
        if made { "" } else { " (already prepared)" },
    )
}

/// Returns the validation documents of all domains.
///
/// # Errors
/// If a prepared file cannot be read, or if a domain's validation documents have no token to predict.
pub fn validation(corpus: &Corpus) -> Result<Vec<Vec<Sequence>>> {
    let of = |domain: &Arc<PreparedDomain>| {
        let documents = domain.validation()?;
        if documents.iter().all(|document| document.num_targets() == 0) {
            return Err(anyhow!(
                "domain `{}` has no token to predict in its validation documents",
                domain.name()
            ))
            .hint("with objective.completion_only_loss, what comes before its answers fills corpus.sequence_length: \
                   raise that, or shorten the prompts")
            .usage();
        }
        Ok(documents)
    };
    corpus.domains.iter().map(of).collect()
}

/// Returns how to measure perplexities on the validation documents.
///
/// # Errors
/// As for [`validation`]; also if `student.device` cannot be used.
pub fn evaluation(settings: &Settings, corpus: &Corpus) -> Result<Evaluation> {
    let vocabulary = corpus.tokenizer.vocabulary() as i64;
    Ok(Evaluation {
        validation: Arc::new(validation(corpus)?),
        batch_rows: settings.evaluation.batch_size,
        vocabulary,
        chunk: chunk(settings, vocabulary)?,
        group: None,
    })
}

/// Each domain's share of the corpus's tokens.
pub fn natural_shares(corpus: &Corpus) -> Vec<f64> {
    let all: u64 = corpus.domains.iter().map(|domain| domain.tokens()).sum();
    let share = |domain: &Arc<PreparedDomain>| domain.tokens() as f64 / all as f64;
    corpus.domains.iter().map(share).collect()
}
