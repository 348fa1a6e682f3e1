//! Compares many runs: methods by seeds, in groups if a setting is swept.
//!
//! A [`ComparedRun`] holds the data of a run's folder. A [`Comparison`] is made only from these, and becomes Markdown,
//! a page, JSON and SVG files.

mod figures;
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

use crate::{
    chart::Chart,
    document::Document,
    scores::Scores,
    statistics::{Paired, Spread},
    table::mean,
};

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
    /// One group per swept value; a single group if nothing is swept.
    pub groups: Vec<Group>,
}

/// Methods under the same settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// `key = value` of the sweep.
    pub swept: Option<String>,
    /// The student before the first step.
    pub start: Model,
    /// The teacher.
    pub teacher: Model,
    /// One result per method.
    pub methods: Vec<MethodResult>,
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

/// The results of a method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodResult {
    /// Its name.
    pub method: String,
    /// The runs' folders, one per seed.
    pub folders: Vec<PathBuf>,
    /// The student's perplexity after the last step, by domain.
    pub perplexity: BTreeMap<String, Spread>,
    /// The mean perplexity over the domains.
    pub mean_perplexity: Spread,
    /// Student's over teacher's perplexity, by domain.
    pub ratio: BTreeMap<String, Spread>,
    /// The mean ratio over the domains.
    pub mean_ratio: Spread,
    /// ln(student's / teacher's perplexity), nats per token, by domain.
    pub gap: BTreeMap<String, Spread>,
    /// The mean gap over the domains.
    pub mean_gap: Spread,
    /// The largest gap of each run.
    pub worst_gap: Spread,
    /// The domain with the largest gap.
    pub worst_domain: String,
    /// Differences from the reference, paired by seed, with the column names of [`Self::best_in`]; `None` for the
    /// reference itself.
    pub difference: Option<BTreeMap<String, Paired>>,
    /// Tokens trained on.
    pub tokens: Spread,
    /// Each domain's share of the tokens.
    pub token_share: BTreeMap<String, Spread>,
    /// FLOPs of the teacher, including preliminary runs.
    pub teacher_flops: Spread,
    /// FLOPs of the teacher that the cache saved, including preliminary runs.
    pub teacher_flops_saved: Spread,
    /// The part of `teacher_flops` that no cache saves: the LM head.
    pub teacher_head_flops: Spread,
    /// FLOPs of the student's training, including preliminary runs.
    pub student_flops: Spread,
    /// FLOPs of evaluations, including preliminary runs.
    pub evaluation_flops: Spread,
    /// FLOPs of evaluation and mixture during the run, as a share of the training's FLOPs.
    pub mixture_flops_share: Spread,
    /// Time of evaluation and mixture during the run, as a share of the training's time.
    pub mixture_seconds_share: Spread,
    /// Wall time, including preliminary runs.
    pub seconds: Spread,
    /// Scores on other tasks, over the seeds that have them.
    pub scores: BTreeMap<String, BTreeMap<String, Spread>>,
    /// The columns (`mean_gap`, `worst_gap`, `perplexity.DOMAIN`, `mean_perplexity`) in which it is the lowest and the
    /// interval of the difference excludes zero.
    pub best_in: Vec<String>,
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
        let methods = of_methods.into_iter().map(|(name, mut runs)| {
            runs.sort_by_key(|run| run.seed);
            MethodResult::of(name, &runs)
        });
        let mut methods: Vec<MethodResult> = methods.collect();
        if let Some(against) = find(&methods, reference).cloned() {
            for method in &mut methods {
                if method.method != against.method {
                    method.difference = Some(method.difference_from(&against));
                }
            }
            mark(&mut methods, &against.method);
        }
        let perplexity = |of: fn(&DomainSummary) -> f64| {
            let domains = runs.iter().take(1).flat_map(|run| &run.summary.domains);
            let values = domains.map(|(name, domain)| (name.clone(), of(domain)));
            values.collect()
        };
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

impl MethodResult {
    fn of(name: &str, runs: &[&ComparedRun]) -> Self {
        let spread = |value: &dyn Fn(&ComparedRun) -> f64| {
            Spread::of(runs.iter().map(|run| value(run)).collect())
        };
        let by_domain = |value: fn(&DomainSummary) -> f64| {
            let first = runs.iter().take(1);
            let domains = first.flat_map(|run| run.summary.domains.keys());
            let of_domain = |name: &String| {
                let of_run =
                    |run: &ComparedRun| run.summary.domains.get(name).map_or(f64::NAN, value);
                (name.clone(), spread(&of_run))
            };
            domains.map(of_domain).collect::<BTreeMap<_, _>>()
        };
        let mean_of = |value: fn(&DomainSummary) -> f64| spread(&|run| mean(&run.summary, value));
        let gap = by_domain(|domain| domain.gap_after);
        let gaps = gap.iter();
        let worst = gaps.max_by(|(_, a), (_, b)| a.mean.total_cmp(&b.mean));
        Self {
            method: name.to_owned(),
            folders: runs.iter().map(|run| run.folder.clone()).collect(),
            perplexity: by_domain(|domain| domain.student_perplexity_after),
            mean_perplexity: mean_of(|domain| domain.student_perplexity_after),
            worst_domain: worst.map_or_else(String::new, |(domain, _)| domain.clone()),
            ratio: by_domain(|domain| domain.ratio_after),
            mean_ratio: mean_of(|domain| domain.ratio_after),
            gap,
            mean_gap: mean_of(|domain| domain.gap_after),
            worst_gap: spread(&|run| {
                let gaps = run.summary.domains.values().map(|domain| domain.gap_after);
                gaps.fold(f64::NAN, f64::max)
            }),
            difference: None,
            tokens: spread(&|run| run.summary.tokens as f64),
            token_share: by_domain(|domain| domain.token_share),
            teacher_flops: spread(&|run| run.cost(|costs| costs.teacher_flops)),
            teacher_flops_saved: spread(&|run| run.cost(|costs| costs.teacher_flops_saved)),
            teacher_head_flops: spread(&|run| run.cost(|costs| costs.teacher_head_flops)),
            student_flops: spread(&|run| run.cost(|costs| costs.student_flops)),
            evaluation_flops: spread(&|run| run.cost(|costs| costs.evaluation_flops)),
            mixture_flops_share: spread(&|run| run.summary.mixture_flops_share),
            mixture_seconds_share: spread(&|run| run.summary.mixture_seconds_share),
            seconds: spread(&|run| run.cost(|costs| costs.seconds)),
            scores: spreads(runs.iter().map(|run| &run.scores)),
            best_in: Vec::new(),
        }
    }

    /// FLOPs of the teacher without a cache.
    fn uncached_teacher_flops(&self) -> f64 {
        self.teacher_flops.mean + self.teacher_flops_saved.mean
    }

    /// Total FLOPs without a cache. With one, they would depend on which method ran first.
    fn all_flops(&self) -> f64 {
        self.uncached_teacher_flops() + self.student_flops.mean + self.evaluation_flops.mean
    }

    /// The columns in which lower is better, by name.
    fn columns(&self) -> impl Iterator<Item = (String, &Spread)> {
        let domains = self.perplexity.iter();
        let domains = domains.map(|(domain, spread)| (format!("perplexity.{domain}"), spread));
        let gaps = [
            ("mean_gap".to_owned(), &self.mean_gap),
            ("worst_gap".to_owned(), &self.worst_gap),
        ];
        let mean = ("mean_perplexity".to_owned(), &self.mean_perplexity);
        gaps.into_iter().chain(domains).chain([mean])
    }

    fn column(&self, name: &str) -> Option<&Spread> {
        let mut columns = self.columns();
        Some(columns.find(|(other, _)| other == name)?.1)
    }

    fn difference_from(&self, reference: &Self) -> BTreeMap<String, Paired> {
        let columns = self.columns().filter_map(|(name, own)| {
            let other = reference.column(&name)?;
            Some((name, Paired::of(&own.values, &other.values)))
        });
        columns.collect()
    }
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
        let difference = told_apart.difference.as_ref();
        if difference.is_some_and(|difference| difference[&column].excludes_zero()) {
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
}
