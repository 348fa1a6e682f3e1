//! Compares many runs: methods by seeds, in groups if a setting is swept.
//!
//! A [`ComparedRun`] holds the data of a run's folder. A [`Comparison`] is made only from these, and becomes Markdown,
//! a page, JSON and SVG files.

mod figures;
mod method;
mod primary;
mod text;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ddk_run::{
    RunFileError, RunView, read,
    records::{ByDomain, DomainSummary, Summary},
    view::Mixture,
};
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

pub use self::{method::MethodResult, primary::Primary};
use crate::{chart::Chart, document::Document, scores::Scores, statistics::Spread};

/// A finished run.
#[derive(Debug, Clone)]
pub struct ComparedRun {
    /// Its method.
    pub method: String,
    /// Its seed.
    pub seed: u64,
    /// Its folder.
    pub folder: PathBuf,
    /// Its `summary.json`.
    pub summary: Summary,
    /// The costs of its preliminary runs (DoReMi's reference and proxy, TED's filters).
    pub phases: Vec<Costs>,
    /// Its mixtures and evaluations.
    pub mixture: Mixture,
    /// Its student's scores on other tasks.
    pub scores: Scores,
}

/// The cost of a run or of a preliminary run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Costs {
    /// FLOPs of the teacher.
    pub teacher_flops: f64,
    /// FLOPs of the teacher that the cache saved.
    pub teacher_flops_saved: f64,
    /// The part of `teacher_flops` that no cache saves: the LM head.
    pub teacher_head_flops: f64,
    /// FLOPs of the student's training.
    pub student_flops: f64,
    /// FLOPs of evaluations.
    pub evaluation_flops: f64,
    /// The part of `evaluation_flops` that evaluated the teacher.
    pub teacher_evaluation_flops: f64,
    /// Wall time.
    pub seconds: f64,
}

impl ComparedRun {
    /// Reads a run's folder.
    ///
    /// # Errors
    /// If a file of the run cannot be read, or if its `summary.json` is missing.
    pub fn read(folder: &Path, method: &str, seed: u64) -> Result<Self, RunFileError> {
        let view = RunView::read(folder);
        if let Some(problem) = view.problems().first() {
            let folder = folder.to_owned();
            return Err(RunFileError::Unreadable(folder, problem.clone()));
        }
        Ok(Self {
            method: method.to_owned(),
            seed,
            folder: folder.to_owned(),
            summary: read::summary(folder)?,
            phases: phases(folder)?,
            mixture: view.mixture(),
            scores: Scores::new(),
        })
    }

    /// A cost of the run and its preliminary runs.
    fn cost(&self, of: fn(&Costs) -> f64) -> f64 {
        let summary = &self.summary;
        let own = Costs {
            teacher_flops: summary.teacher_flops,
            teacher_flops_saved: summary.teacher_flops_saved,
            teacher_head_flops: summary.teacher_head_flops,
            student_flops: summary.student_flops,
            evaluation_flops: summary.evaluation_flops,
            teacher_evaluation_flops: summary.teacher_evaluation_flops,
            seconds: summary.seconds,
        };
        self.phases.iter().chain([&own]).map(of).sum()
    }
}

/// The costs of the runs in `phases/`.
fn phases(folder: &Path) -> Result<Vec<Costs>, RunFileError> {
    let entries = fs::read_dir(folder.join("phases")).into_iter();
    let summaries = entries
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("summary.json"));
    let summaries = summaries.filter(|path| path.exists());
    summaries.map(|path| read::record(&path)).collect()
}

/// A comparison of runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Its name.
    pub name: String,
    /// The command that made it.
    pub command: String,
    /// The method that the others are compared with, if it is among them.
    pub reference: Option<String>,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Whether each seed has an initial student of its own. Otherwise seeds vary only the order of the data.
    pub varies_student: bool,
    /// One group per swept value; a single group if nothing is swept.
    pub groups: Vec<Group>,
}

/// Methods under the same settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// `key = value` of the sweep.
    pub swept: Option<String>,
    /// The student before the first step; the mean over the seeds if they vary it.
    pub start: Model,
    /// The teacher.
    pub teacher: Model,
    /// One result per method.
    pub methods: Vec<MethodResult>,
    /// The claims for the method that steers, if it is among the methods.
    pub primary: Vec<Primary>,
    /// Its figures.
    #[serde(skip)]
    pub charts: Vec<Chart>,
}

/// A model that is the same for all methods.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Model {
    /// Perplexity by domain.
    pub perplexity: ByDomain,
    /// Scores on other tasks.
    pub scores: Scores,
}

impl Group {
    /// Groups runs by method, in the order in which the methods first appear. Every method must have the same seeds.
    pub fn new(
        swept: Option<String>,
        runs: &[ComparedRun],
        reference: Option<&str>,
        start_scores: Scores,
        teacher_scores: Scores,
    ) -> Self {
        let mut of_methods: IndexMap<&str, Vec<&ComparedRun>> = IndexMap::new();
        for run in runs {
            of_methods.entry(&run.method).or_default().push(run);
        }
        let natural = natural(runs);
        let methods = of_methods.into_iter().map(|(name, mut runs)| {
            runs.sort_by_key(|run| run.seed);
            MethodResult::of(name, &runs, natural)
        });
        let mut methods: Vec<MethodResult> = methods.collect();
        let others = methods.clone();
        for method in &mut methods {
            method.compare(&others);
        }
        if let Some(reference) = reference {
            mark(&mut methods, reference);
        }
        let perplexity = |of| perplexity(runs, of);
        let mut group = Self {
            swept,
            start: Model {
                perplexity: perplexity(|domain| domain.student_perplexity_before),
                scores: start_scores,
            },
            teacher: Model {
                perplexity: perplexity(|domain| domain.teacher_perplexity),
                scores: teacher_scores,
            },
            primary: primary::of(&methods),
            methods,
            charts: Vec::new(),
        };
        group.charts = figures::charts(&group, runs);
        group
    }

    /// The swept value as a part of file names.
    fn slug(&self) -> String {
        let is_special = |letter: char| !letter.is_ascii_alphanumeric() && letter != '.';
        let slug = |swept: &String| swept.replace(" = ", "-").replace(is_special, "-");
        let swept = self.swept.iter().map(|swept| format!("-{}", slug(swept)));
        swept.collect()
    }
}

/// The shares of the corpus: the first weights of a run with the natural mixture.
fn natural(runs: &[ComparedRun]) -> Option<&ByDomain> {
    let mut first = runs
        .iter()
        .filter_map(|run| Some(&run.mixture.intervals.first()?.mixture));
    Some(&first.find(|line| line.policy == "natural")?.weights)
}

/// A perplexity by domain: the mean over the runs of the first method.
fn perplexity(runs: &[ComparedRun], of: fn(&DomainSummary) -> f64) -> ByDomain {
    let mut means = ByDomain::new();
    let first = runs.first().map(|run| &run.method);
    let own = runs.iter().filter(|run| Some(&run.method) == first);
    for (index, run) in own.enumerate() {
        for (name, domain) in &run.summary.domains {
            let mean = means.entry(name.clone()).or_insert(0.0);
            // In this form, the mean of equal values is that value, bit for bit.
            *mean += (of(domain) - *mean) / (index + 1) as f64;
        }
    }
    means
}

/// Marks the lowest method of each column if the interval of its paired difference from the reference excludes zero.
/// If the reference is the lowest, the difference of the next lowest decides.
fn mark(methods: &mut [MethodResult], reference: &str) {
    let columns = methods.iter().take(1).flat_map(MethodResult::columns);
    let columns: Vec<String> = columns.map(|(name, _)| name).collect();
    for column in columns {
        let spread = |index: &usize| methods[*index].column(&column);
        let mean = |index: &usize| spread(index).map_or(f64::NAN, |spread| spread.mean);
        let mut order: Vec<usize> = (0..methods.len()).collect();
        order.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
        let [best, next, ..] = order[..] else {
            continue;
        };
        let is_reference = methods[best].method == reference;
        let told_apart = &methods[if is_reference { next } else { best }];
        let difference = told_apart.difference(reference, &column);
        if difference.is_some_and(|difference| difference.excludes_zero()) {
            methods[best].best_in.push(column);
        }
    }
}

/// Finds a method by its name.
fn find<'a>(methods: &'a [MethodResult], name: Option<&str>) -> Option<&'a MethodResult> {
    methods.iter().find(|method| Some(&*method.method) == name)
}

/// Scores over the models that have them: task to metric to values.
fn spreads<'a>(
    models: impl IntoIterator<Item = &'a Scores>,
) -> BTreeMap<String, BTreeMap<String, Spread>> {
    let mut values: BTreeMap<&String, BTreeMap<&String, Vec<f64>>> = BTreeMap::new();
    for (task, metrics) in models.into_iter().flatten() {
        for (metric, value) in metrics {
            let of_task = values.entry(task).or_default();
            of_task.entry(metric).or_default().push(*value);
        }
    }
    let of_task = |metrics: BTreeMap<&String, Vec<f64>>| {
        let metrics = metrics.into_iter();
        metrics
            .map(|(metric, values)| (metric.clone(), Spread::of(values)))
            .collect()
    };
    let tasks = values.into_iter();
    tasks
        .map(|(task, metrics)| (task.clone(), of_task(metrics)))
        .collect()
}

impl Comparison {
    /// Its text, tables and figures.
    pub fn document(&self) -> Document {
        Document {
            title: self.name.clone(),
            blocks: text::blocks(self),
        }
    }

    /// Its main tables, for a terminal.
    pub fn brief(&self) -> String {
        text::brief(self)
    }
}
