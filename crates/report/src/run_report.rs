//! The report of a run: what came out, how it came about, what went wrong meanwhile, and how to have it again.

use std::{collections::BTreeMap, fs, path::Path};

use ddk_run::{
    PhaseSeconds, RunFileError, read,
    records::{ByDomain, DomainSummary, EventKind, EventLine, StepLine, Summary},
};
use jiff::Timestamp;

use crate::{
    chart::Chart,
    document::{Block, Table, markdown, page},
    figures,
    table::number,
};

/// More incidents than this are counted, not listed.
const LISTED: usize = 50;

/// A setting that is not the default: key, default, value of the run.
pub type Changed = (String, String, String);

/// A run's report, to be written as a page or as Markdown with figures beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReport {
    name: String,
    blocks: Vec<Block>,
}

impl RunReport {
    /// From a run's folder alone, but for the defaults that its settings are held against. A run that has not
    /// ended yet has no summary; it is told as far as it goes.
    pub fn of(folder: &Path, changed: &[Changed]) -> Result<Self, RunFileError> {
        let name = folder
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let ended = folder.join("summary.json").exists();
        let summary = ended.then(|| read::summary(folder)).transpose()?;
        let steps = read::steps(folder)?;
        let mut blocks = vec![Block::Title(1, name.clone())];
        match &summary {
            Some(summary) => blocks.extend(result(summary)),
            None => blocks.push(Block::Text("This run has not ended yet.".to_owned())),
        }
        blocks.push(Block::Title(2, "How it came about".to_owned()));
        let (mixtures, _) = read::mixtures(folder)?;
        let last_step = steps.last().map_or(0, |line| line.step);
        let after: Option<ByDomain> = summary.as_ref().map(ratios_after);
        let after = after.as_ref().map(|values| (last_step, values));
        blocks.extend([
            Block::Figure(figures::weights(&mixtures, last_step)),
            Block::Figure(figures::ratios(&mixtures, after)),
            Block::Figure(figures::losses(&steps)),
        ]);
        blocks.extend(time(&steps, summary.as_ref()));
        blocks.extend(incidents(&read::events(folder)?));
        blocks.extend(settings(changed));
        blocks.extend(again(folder));
        Ok(Self { name, blocks })
    }

    /// One page that works without a network.
    pub fn html(&self) -> String {
        page(&self.name, &self.blocks)
    }

    /// Markdown; its figures are `figures/NAME.svg` beside it.
    pub fn markdown(&self) -> String {
        markdown(&self.blocks)
    }

    /// Its figures.
    pub fn charts(&self) -> impl Iterator<Item = &Chart> {
        self.blocks.iter().filter_map(|block| match block {
            Block::Figure(chart) => Some(chart),
            _ => None,
        })
    }
}

fn result(summary: &Summary) -> Vec<Block> {
    let count = summary.domains.len().max(1) as f64;
    let mean =
        |of: fn(&DomainSummary) -> f64| summary.domains.values().map(of).sum::<f64>() / count;
    let (before, after) = (
        mean(|domain| domain.ratio_before),
        mean(|domain| domain.ratio_after),
    );
    let how = if before.is_nan() {
        "the model learned from the text alone".to_owned()
    } else {
        format!(
            "the student's perplexity went from **{before:.3}** to **{after:.3}** times the teacher's (mean of \
             {} domains)",
            summary.domains.len()
        )
    };
    let text = format!(
        "In {} steps and {} intervals, on {} tokens, {how}. It took {} at {:.0} tokens a second, and at most \
         {:.2} GB of memory. Stopped by `{}`; exported: {}.",
        summary.steps,
        summary.intervals,
        summary.tokens,
        duration(summary.distill_seconds),
        summary.tokens_per_second,
        summary.peak_rss_bytes as f64 / 1e9,
        summary.stop_reason,
        summary.exported
    );
    let mut rows: Vec<Vec<String>> = summary
        .domains
        .iter()
        .map(|(name, domain)| {
            vec![
                name.clone(),
                format!("{:.2}", domain.student_perplexity_before),
                format!("{:.2}", domain.student_perplexity_after),
                number(domain.teacher_perplexity, 2),
                number(domain.ratio_before, 3),
                number(domain.ratio_after, 3),
                format!("{:.1} %", 100.0 * domain.token_share),
            ]
        })
        .collect();
    let empty = String::new;
    rows.push(vec![
        "mean".to_owned(),
        empty(),
        empty(),
        empty(),
        number(before, 3),
        number(after, 3),
        empty(),
    ]);
    let header = [
        "domain",
        "student before",
        "student after",
        "teacher",
        "ratio before",
        "ratio after",
        "share of tokens",
    ];
    vec![Block::Text(text), table(&header, rows)]
}

fn ratios_after(summary: &Summary) -> ByDomain {
    let domains = summary.domains.iter();
    domains
        .map(|(name, domain)| (name.clone(), domain.ratio_after))
        .collect()
}

/// Sums of the steps' phases on the student's lane, and what went on beside it.
fn time(steps: &[StepLine], summary: Option<&Summary>) -> Vec<Block> {
    let mut phases = PhaseSeconds::new();
    for (phase, seconds) in steps.iter().flat_map(|line| &line.seconds) {
        *phases.entry(*phase).or_default() += seconds;
    }
    let all: f64 = phases.values().sum();
    let share = |seconds: f64| format!("{:.1} %", 100.0 * seconds / all.max(1e-9));
    let rows = phases
        .iter()
        .map(|(phase, sum)| vec![phase.to_string(), duration(*sum), share(*sum)])
        .collect();
    let mut blocks = vec![
        Block::Title(2, "Where the time went".to_owned()),
        Block::Text("The student's lane, sums over all steps:".to_owned()),
        table(&["phase", "time", "share"], rows),
    ];
    if let Some(summary) = summary {
        blocks.push(Block::Text(format!(
            "Overlap {:.2}: the teacher was busy for {}, the student for {}, evaluations took {}; between \
             intervals training stood still for {}, for saves {}. Teacher lanes waited for data {:.2} % of the \
             time. Steering (evaluation and mixture) cost {:.2} % of the training's FLOPs and {:.2} % of the \
             time.",
            summary.overlap,
            duration(summary.teacher_busy_seconds),
            duration(summary.student_busy_seconds),
            duration(summary.evaluation_seconds),
            duration(summary.boundary_seconds),
            duration(summary.save_stall_seconds),
            100.0 * summary.data_wait_share,
            100.0 * summary.mixture_flops_share,
            100.0 * summary.mixture_seconds_share
        )));
    }
    blocks
}

fn incidents(events: &[EventLine]) -> Vec<Block> {
    let is_incident = |event: &&EventLine| event.kind.is_incident();
    let all: Vec<&EventLine> = events.iter().filter(is_incident).collect();
    let mut blocks = vec![Block::Title(2, "Incidents".to_owned())];
    if all.is_empty() {
        blocks.push(Block::Text(
            "None: nothing was restarted, skipped, rolled back or refused, and every save succeeded.".to_owned(),
        ));
        return blocks;
    }
    let mut kinds: BTreeMap<EventKind, usize> = BTreeMap::new();
    for event in &all {
        *kinds.entry(event.kind).or_default() += 1;
    }
    let counts: Vec<String> = kinds
        .iter()
        .map(|(kind, count)| format!("{count} `{kind}`"))
        .collect();
    blocks.push(Block::Text(counts.join(", ") + "."));
    let rows = all.iter().take(LISTED).map(|event| {
        vec![
            moment(event.time),
            event.kind.to_string(),
            event.message.clone(),
        ]
    });
    blocks.push(table(&["time (UTC)", "what", "how"], rows.collect()));
    if all.len() > LISTED {
        blocks.push(Block::Text(format!(
            "{} more are in events.jsonl.",
            all.len() - LISTED
        )));
    }
    blocks
}

fn settings(changed: &[Changed]) -> Vec<Block> {
    let rows = changed.iter().map(|(key, default, value)| {
        vec![
            format!("`{key}`"),
            format!("`{default}`"),
            format!("`{value}`"),
        ]
    });
    vec![
        Block::Title(2, "Settings that differ from the defaults".to_owned()),
        table(&["key", "default", "this run"], rows.collect()),
    ]
}

fn again(folder: &Path) -> Vec<Block> {
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let command = if folder.join("pretrain.json").exists() {
        "ddk pretrain CONFIG --model NAME --force"
    } else {
        "ddk train config.toml --set run.name=again"
    };
    vec![
        Block::Title(2, "How to have it again".to_owned()),
        Block::Text(format!(
            "`{command}` with ddk {}, the settings below as config.toml, and the models and data of these hashes: \
             the same bits on a CPU with the same number of threads.",
            env!("CARGO_PKG_VERSION")
        )),
        Block::Code("config.toml".to_owned(), read("config.toml")),
        Block::Code("inputs.json".to_owned(), read("inputs.json")),
    ]
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> Block {
    Block::Table(Table {
        header: header.iter().map(|name| (*name).to_owned()).collect(),
        rows,
    })
}

/// Seconds as a person says them.
fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 120.0 => format!("{seconds:.1} s"),
        seconds if seconds < 7200.0 => format!("{:.1} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Seconds since 1970 as a date and a time, UTC.
fn moment(seconds: f64) -> String {
    match Timestamp::from_second(seconds as i64) {
        Ok(time) => time.to_string(),
        Err(_) => format!("{seconds:.0}"),
    }
}
