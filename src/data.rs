//! `ddk data`: prints what a prepared corpus contains, and what a run trained on.

use std::{
    io::{self, BufRead, BufReader, IsTerminal, Write},
    ops::Range,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use ddk_corpus::{PreparedDomain, Sequence, TokenizerFolder};
use ddk_jobs::{
    args::ConfigArgs,
    hint::Hint,
    hub::{self, Wanted},
    prepare::{self, Outdated},
};
use ddk_run::{records::SampleLine, view::counted};

use crate::cli::DataCommand;

/// Tokens of a sequence that `ddk data inspect` prints without `--full`.
const TOKENS: usize = 200;

/// Prints what a prepared corpus contains, or the sequences that a step of a run trained on.
///
/// # Errors
/// If the corpus or the run's samples cannot be read, if they do not match, or if `out` cannot be written.
pub fn run(command: &DataCommand, out: &mut dyn Write) -> Result<()> {
    match command {
        DataCommand::Inspect {
            config,
            domain,
            rows,
            full,
        } => {
            let most = if *full { usize::MAX } else { TOKENS };
            inspect(config, domain.as_deref(), *rows, most, out)
        }
        DataCommand::Samples { run, step } => samples(run, *step, out),
    }
}

/// Prints `rows` sequences of each domain, up to `most` tokens of each.
fn inspect(
    args: &ConfigArgs,
    only: Option<&str>,
    rows: u64,
    most: usize,
    out: &mut dyn Write,
) -> Result<()> {
    let settings = ddk_jobs::config::load(&args.of_runs())?.settings;
    let settings = hub::located(&settings, &[Wanted::Corpus], &hub::pinned(&settings)?, None)?;
    let corpus = prepare::open(&settings, Outdated::Kept)?;
    let names: Vec<&str> = corpus.names().collect();
    if let Some(only) = only.filter(|only| !names.contains(only)) {
        return Err(anyhow!("there is no domain `{only}`"))
            .hint(format!("available domains: {}", names.join(", ")))
            .usage();
    }
    let all = corpus.domains.iter().zip(&corpus.reports);
    let wanted = all.filter(|(domain, _)| only.is_none_or(|only| domain.name() == only));
    let marks = Marks::choose();
    for (domain, report) in wanted {
        writeln!(out, "{}", prepare::describe(report))?;
        histogram(domain, out)?;
        if domain.has_mask() && settings.objective.completion_only_loss {
            writeln!(out, "  {}", marks.legend)?;
        } else if domain.has_mask() {
            writeln!(
                out,
                "  the loss includes prompts: objective.completion_only_loss is false"
            )?;
        }
        for row in spread(domain.rows(), rows) {
            let row = domain.sequence(row)?;
            let (number, rows, tokens) = (row.number, domain.rows(), row.tokens.len());
            writeln!(
                out,
                "  sequence {number} of {rows}: {}",
                counted(tokens as u64, "token")
            )?;
            print_row(&row, &corpus.tokenizer, marks, most, out)?;
            if let Some(more @ 1..) = tokens.checked_sub(most) {
                writeln!(
                    out,
                    "  | … {} (--full prints them)",
                    counted(more as u64, "more token")
                )?;
            }
        }
    }
    Ok(())
}

/// `count` evenly spaced numbers below `all`.
fn spread(all: u64, count: u64) -> impl Iterator<Item = u64> {
    let count = count.min(all);
    (0..count).map(move |index| index * all / count)
}

/// Prints the number of documents by length in tokens, in powers of two.
fn histogram(domain: &Arc<PreparedDomain>, out: &mut dyn Write) -> Result<()> {
    let mut counts = [0_u64; 64];
    for length in domain.document_lengths()? {
        counts[length.max(1).ilog2() as usize] += 1;
    }
    let largest = counts.iter().copied().max().unwrap_or(0).max(1);
    writeln!(out, "  tokens per document")?;
    for (power, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let bar = "#".repeat((count * 40).div_ceil(largest) as usize);
        let (from, to) = (1_u64 << power, (2_u64 << power) - 1);
        writeln!(out, "  {from:>9} to {to:<9} {count:>9} {bar}")?;
    }
    Ok(())
}

/// What encloses the text that the loss leaves out.
#[derive(Clone, Copy)]
struct Marks {
    begin: &'static str,
    end: &'static str,
    /// How to read it.
    legend: &'static str,
}

impl Marks {
    /// Dim letters on a terminal, brackets elsewhere.
    fn choose() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stdout().is_terminal() && !plain {
            Self {
                begin: "\x1b[2m",
                end: "\x1b[0m",
                legend: "dim text is excluded from the loss",
            }
        } else {
            Self {
                begin: "⟦",
                end: "⟧",
                legend: "⟦text in such brackets⟧ is excluded from the loss",
            }
        }
    }
}

/// Prints the documents of a sequence as text with special tokens, each on separate lines, and marks what is masked.
/// Stops after `most` tokens.
fn print_row(
    row: &Sequence,
    tokenizer: &TokenizerFolder,
    marks: Marks,
    most: usize,
    out: &mut dyn Write,
) -> Result<()> {
    let (mut start, most) = (0, most.min(row.tokens.len()));
    for span in &row.spans {
        if start >= most {
            break;
        }
        let end = (start + span.tokens as usize).min(most);
        let (document, from, to) = (span.document, span.offset, span.offset + span.tokens);
        writeln!(out, "  | document {document}, tokens {from} to {to}")?;
        let mut text = String::new();
        for (range, is_masked) in pieces(start..end, &row.masked) {
            // Decode together with what comes before: some decoders drop the space before a text's first word.
            let before = tokenizer.decode_with_special(&row.tokens[start..range.start])?;
            let with = tokenizer.decode_with_special(&row.tokens[start..range.end])?;
            let piece = match with.strip_prefix(before.as_str()) {
                Some(piece) => piece.to_owned(),
                None => tokenizer.decode_with_special(&row.tokens[range])?,
            };
            if is_masked {
                // Mark each line, because each is printed with a margin.
                let line = |line: &str| match line {
                    "" => String::new(),
                    _ => format!("{}{line}{}", marks.begin, marks.end),
                };
                let lines: Vec<String> = piece.split('\n').map(line).collect();
                text.push_str(&lines.join("\n"));
            } else {
                text.push_str(&piece);
            }
        }
        for line in text.lines() {
            writeln!(out, "  |   {line}")?;
        }
        start = end;
    }
    Ok(())
}

/// Cuts a range of tokens into pieces that are masked or not.
fn pieces(all: Range<usize>, masked: &[Range<u64>]) -> Vec<(Range<usize>, bool)> {
    let (mut pieces, mut next) = (Vec::new(), all.start);
    for range in masked {
        let start = (range.start as usize).clamp(next, all.end);
        let end = (range.end as usize).clamp(start, all.end);
        pieces.push((next..start, false));
        pieces.push((start..end, true));
        next = end;
    }
    pieces.push((next..all.end, false));
    pieces.retain(|(range, _)| !range.is_empty());
    pieces
}

fn samples(run: &Path, step: u64, out: &mut dyn Write) -> Result<()> {
    let path = run.join("samples.jsonl");
    let file = std::fs::File::open(&path)
        .with_context(|| format!("cannot read {}", path.display()))
        .hint("train with log.samples = true: only then does a run write samples.jsonl")?;
    let settings = ddk_jobs::config::of_run(run)?;
    let settings = hub::located(&settings, &[Wanted::Corpus], &hub::revisions_of(run)?, None)?;
    let (options, tokenizer) = prepare::options(&settings)?;
    let sequence_options = prepare::sequence_options(&settings);
    let (mut found, marks) = (0, Marks::choose());
    for line in BufReader::new(file).lines() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        let sample: SampleLine =
            serde_json::from_str(&line).with_context(|| path.display().to_string())?;
        if sample.step != step {
            continue;
        }
        let domain = PreparedDomain::open(&options.folder, &sample.domain, sequence_options)?;
        let row = domain.sequence(sample.sequence)?;
        let now = row.spans.iter();
        let now = now.map(|span| (span.document, span.offset, span.tokens));
        let then = sample.spans.iter();
        let then = then.map(|span| (span.document, span.offset, span.tokens));
        if !now.eq(then) {
            return Err(anyhow!(
                "sequence {} of `{}` differs from the one the run trained on: the corpus was prepared again since then",
                sample.sequence,
                sample.domain
            ));
        }
        writeln!(
            out,
            "{}: sequence {} of epoch {}, drawn in interval {}",
            sample.domain, sample.sequence, sample.epoch, sample.interval
        )?;
        if !row.masked.is_empty() {
            writeln!(out, "  {}", marks.legend)?;
        }
        print_row(&row, &tokenizer, marks, usize::MAX, out)?;
        found += 1;
    }
    if found == 0 {
        return Err(anyhow!("{} has no step {step}", path.display())).usage();
    }
    Ok(())
}
