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
    records::{ByDomain, Summary},
    view::Mixture,
};
use serde::{Deserialize, Serialize};

use crate::{
    chart::Chart,
    document,
    scores::Scores,
    statistics::{Paired, Spread},
    svg::{ChartError, WIDTH, svg},
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
    /// The total cost of its preliminary runs (DoReMi's reference and proxy, TED's filters).
    pub phases: Costs,
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
    /// FLOPs of the student's training.
    pub student_flops: f64,
    /// FLOPs of evaluations.
    pub evaluation_flops: f64,
    /// Wall time.
    pub seconds: f64,
}

impl Costs {
    fn plus(self, other: Self) -> Self {
        Self {
            teacher_flops: self.teacher_flops + other.teacher_flops,
            student_flops: self.student_flops + other.student_flops,
            evaluation_flops: self.evaluation_flops + other.evaluation_flops,
            seconds: self.seconds + other.seconds,
        }
    }
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

    /// The cost of the run and its preliminary runs.
    fn costs(&self) -> Costs {
        let summary = &self.summary;
        self.phases.plus(Costs {
            teacher_flops: summary.teacher_flops,
            student_flops: summary.student_flops,
            evaluation_flops: summary.evaluation_flops,
            seconds: summary.seconds,
        })
    }
}

/// The total cost of the runs in `phases/`.
fn phases(folder: &Path) -> Result<Costs, RunFileError> {
    let Ok(entries) = fs::read_dir(folder.join("phases")) else {
        return Ok(Costs::default());
    };
    let mut sum = Costs::default();
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path().join("summary.json");
        if !path.exists() {
            continue;
        }
        sum = sum.plus(read::record(&path)?);
    }
    Ok(sum)
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
        let mut names: Vec<&str> = Vec::new();
        for run in runs {
            if !names.contains(&run.method.as_str()) {
                names.push(&run.method);
            }
        }
        let of = |name: &str| -> Vec<&ComparedRun> {
            let mut own: Vec<&ComparedRun> = runs.iter().filter(|run| run.method == name).collect();
            own.sort_by_key(|run| run.seed);
            own
        };
        let mut methods: Vec<MethodResult> = names
            .iter()
            .map(|name| MethodResult::of(name, &of(name)))
            .collect();
        let against = methods
            .iter()
            .find(|method| Some(method.method.as_str()) == reference)
            .cloned();
        if let Some(against) = &against {
            for method in &mut methods {
                if method.method != against.method {
                    method.difference = Some(method.difference_from(against));
                }
            }
            mark(&mut methods, &against.method);
        }
        let domains = runs.iter().take(1).flat_map(|run| &run.summary.domains);
        let (start, teacher) = domains
            .map(|(name, domain)| {
                let of = |value| (name.clone(), value);
                (
                    of(domain.student_perplexity_before),
                    of(domain.teacher_perplexity),
                )
            })
            .unzip();
        let mut group = Self {
            swept,
            start: Model {
                perplexity: start,
                scores: start_scores,
            },
            teacher: Model {
                perplexity: teacher,
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
        let plain = |character: char| {
            if character.is_ascii_alphanumeric() || character == '.' {
                character
            } else {
                '-'
            }
        };
        let swept = self.swept.iter();
        swept
            .map(|text| {
                format!(
                    "-{}",
                    text.replace(" = ", "-")
                        .chars()
                        .map(plain)
                        .collect::<String>()
                )
            })
            .collect()
    }
}

impl MethodResult {
    fn of(name: &str, runs: &[&ComparedRun]) -> Self {
        let spread = |value: &dyn Fn(&ComparedRun) -> f64| {
            Spread::of(runs.iter().map(|run| value(run)).collect())
        };
        let domains: Vec<&String> = runs
            .first()
            .map_or_else(Vec::new, |run| run.summary.domains.keys().collect());
        let by_domain = |value: &dyn Fn(&ddk_run::records::DomainSummary) -> f64| {
            let of_domain = |domain: &&String| {
                let of_run =
                    |run: &ComparedRun| run.summary.domains.get(*domain).map_or(f64::NAN, value);
                ((*domain).clone(), spread(&of_run))
            };
            domains.iter().map(of_domain).collect::<BTreeMap<_, _>>()
        };
        let mean_of = |value: fn(&ddk_run::records::DomainSummary) -> f64| {
            spread(&move |run: &ComparedRun| {
                let values = run.summary.domains.values();
                values.map(value).sum::<f64>() / run.summary.domains.len() as f64
            })
        };
        let gap = by_domain(&|domain| domain.gap_after);
        let worst = gap
            .iter()
            .max_by(|(_, a), (_, b)| a.mean.total_cmp(&b.mean));
        Self {
            method: name.to_owned(),
            folders: runs.iter().map(|run| run.folder.clone()).collect(),
            perplexity: by_domain(&|domain| domain.student_perplexity_after),
            mean_perplexity: mean_of(|domain| domain.student_perplexity_after),
            worst_domain: worst.map_or_else(String::new, |(domain, _)| domain.clone()),
            ratio: by_domain(&|domain| domain.ratio_after),
            mean_ratio: mean_of(|domain| domain.ratio_after),
            gap,
            mean_gap: mean_of(|domain| domain.gap_after),
            worst_gap: spread(&|run| {
                let gaps = run.summary.domains.values().map(|domain| domain.gap_after);
                gaps.fold(f64::NAN, f64::max)
            }),
            difference: None,
            tokens: spread(&|run| run.summary.tokens as f64),
            token_share: by_domain(&|domain| domain.token_share),
            teacher_flops: spread(&|run| run.costs().teacher_flops),
            student_flops: spread(&|run| run.costs().student_flops),
            evaluation_flops: spread(&|run| run.costs().evaluation_flops),
            mixture_flops_share: spread(&|run| run.summary.mixture_flops_share),
            mixture_seconds_share: spread(&|run| run.summary.mixture_seconds_share),
            seconds: spread(&|run| run.costs().seconds),
            scores: scores(runs),
            best_in: Vec::new(),
        }
    }

    /// Total FLOPs.
    fn all_flops(&self) -> f64 {
        self.teacher_flops.mean + self.student_flops.mean + self.evaluation_flops.mean
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
        self.columns()
            .find(|(other, _)| other == name)
            .map(|(_, spread)| spread)
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
    let columns: Vec<String> = methods.first().map_or_else(Vec::new, |method| {
        method.columns().map(|(name, _)| name).collect()
    });
    for column in columns {
        let mean = |index: &usize| {
            methods[*index]
                .column(&column)
                .map_or(f64::NAN, |of| of.mean)
        };
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

/// Scores over the seeds that have them.
fn scores(runs: &[&ComparedRun]) -> BTreeMap<String, BTreeMap<String, Spread>> {
    let mut values: BTreeMap<String, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    for run in runs {
        for (task, metrics) in &run.scores {
            for (metric, value) in metrics {
                let of_task = values.entry(task.clone()).or_default();
                of_task.entry(metric.clone()).or_default().push(*value);
            }
        }
    }
    let spreads = |metrics: BTreeMap<String, Vec<f64>>| {
        let spreads = metrics
            .into_iter()
            .map(|(metric, values)| (metric, Spread::of(values)));
        spreads.collect()
    };
    values
        .into_iter()
        .map(|(task, metrics)| (task, spreads(metrics)))
        .collect()
}

impl Comparison {
    /// Renders Markdown, with figures as files beside it (see [`Self::svgs`]).
    pub fn markdown(&self) -> String {
        document::markdown(&text::blocks(self))
    }

    /// Renders a page that works offline.
    ///
    /// # Errors
    /// If a chart cannot be drawn.
    pub fn html(&self) -> Result<String, ChartError> {
        document::page(&self.name, &text::blocks(self))
    }

    /// The figures that the Markdown refers to: name and content.
    ///
    /// # Errors
    /// If a chart cannot be drawn.
    pub fn svgs(&self) -> Result<Vec<(String, String)>, ChartError> {
        let charts = self.groups.iter().flat_map(|group| &group.charts);
        charts
            .map(|chart| Ok((format!("{}.svg", chart.name), svg(chart, WIDTH)?)))
            .collect()
    }
}
