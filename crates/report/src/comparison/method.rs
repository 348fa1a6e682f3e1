//! The results of a method: its runs over all seeds.

use std::{collections::BTreeMap, path::PathBuf};

use ddk_run::records::{ByDomain, DomainSummary};
use serde::Serialize;

use super::{ComparedRun, spreads};
use crate::{
    statistics::{Paired, Spread},
    table::mean,
};

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
    /// The loss over the whole corpus: ln(perplexity) of the student, weighted by each domain's share of the corpus's
    /// tokens, in nats per token. `None` if no method draws the natural mixture, which has these shares.
    pub token_weighted_loss: Option<Spread>,
    /// Student's over teacher's perplexity, by domain.
    pub ratio: BTreeMap<String, Spread>,
    /// The mean ratio over the domains.
    pub mean_ratio: Spread,
    /// ln(student's / teacher's perplexity), nats per token, by domain.
    pub gap: BTreeMap<String, Spread>,
    /// The mean gap over the domains.
    pub mean_gap: Spread,
    /// The mean over the domains of the gap, or of 0 for a domain in which the student is better than the teacher.
    pub clipped_gap: Spread,
    /// The largest gap of each run.
    pub worst_gap: Spread,
    /// The domain with the largest gap.
    pub worst_domain: String,
    /// Differences from each other method, paired by seed: by the other method, then by the column names of
    /// [`Self::best_in`].
    pub differences: BTreeMap<String, BTreeMap<String, Paired>>,
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
    /// FLOPs of the student's evaluations, including preliminary runs. The teacher's evaluation is left out, because
    /// only the first run that needs it computes it.
    pub evaluation_flops: Spread,
    /// FLOPs of evaluation and mixture during the run, as a share of the training's FLOPs.
    pub mixture_flops_share: Spread,
    /// Time of evaluation and mixture during the run, as a share of the training's time.
    pub mixture_seconds_share: Spread,
    /// Wall time, including preliminary runs.
    pub seconds: Spread,
    /// Scores on other tasks, over the seeds that have them.
    pub scores: BTreeMap<String, BTreeMap<String, Spread>>,
    /// The columns (`mean_gap`, `worst_gap`, `clipped_gap`, `token_weighted_loss`, `mean_perplexity`,
    /// `perplexity.DOMAIN`) in which it is the lowest and the interval of the difference from the reference excludes
    /// zero.
    pub best_in: Vec<String>,
}

impl MethodResult {
    /// The results of a method's runs. `natural`: the shares of the corpus, if they are known.
    pub(super) fn of(name: &str, runs: &[&ComparedRun], natural: Option<&ByDomain>) -> Self {
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
            clipped_gap: mean_of(|domain| domain.gap_after.max(0.0)),
            token_weighted_loss: natural.map(|shares| {
                spread(&|run| {
                    let domains = run.summary.domains.iter();
                    let losses = domains.map(|(name, domain)| {
                        let share = shares.get(name).copied().unwrap_or(f64::NAN);
                        share * domain.student_perplexity_after.ln()
                    });
                    losses.sum()
                })
            }),
            worst_gap: spread(&|run| {
                let gaps = run.summary.domains.values().map(|domain| domain.gap_after);
                gaps.fold(f64::NAN, f64::max)
            }),
            differences: BTreeMap::new(),
            tokens: spread(&|run| run.summary.tokens as f64),
            token_share: by_domain(|domain| domain.token_share),
            teacher_flops: spread(&|run| run.cost(|costs| costs.teacher_flops)),
            teacher_flops_saved: spread(&|run| run.cost(|costs| costs.teacher_flops_saved)),
            teacher_head_flops: spread(&|run| run.cost(|costs| costs.teacher_head_flops)),
            student_flops: spread(&|run| run.cost(|costs| costs.student_flops)),
            evaluation_flops: spread(&|run| {
                run.cost(|costs| costs.evaluation_flops - costs.teacher_evaluation_flops)
            }),
            mixture_flops_share: spread(&|run| run.summary.mixture_flops_share),
            mixture_seconds_share: spread(&|run| run.summary.mixture_seconds_share),
            seconds: spread(&|run| run.cost(|costs| costs.seconds)),
            scores: spreads(runs.iter().map(|run| &run.scores)),
            best_in: Vec::new(),
        }
    }

    /// FLOPs of the teacher without a cache.
    pub(super) fn uncached_teacher_flops(&self) -> f64 {
        self.teacher_flops.mean + self.teacher_flops_saved.mean
    }

    /// Total FLOPs without a cache. With one, they would depend on which method ran first.
    pub(super) fn all_flops(&self) -> f64 {
        self.uncached_teacher_flops() + self.student_flops.mean + self.evaluation_flops.mean
    }

    /// The measures over all domains, by name. Lower is better.
    pub(super) fn measures(&self) -> impl Iterator<Item = (&'static str, &Spread)> {
        let measures = [
            ("mean_gap", Some(&self.mean_gap)),
            ("worst_gap", Some(&self.worst_gap)),
            ("clipped_gap", Some(&self.clipped_gap)),
            ("token_weighted_loss", self.token_weighted_loss.as_ref()),
            ("mean_perplexity", Some(&self.mean_perplexity)),
        ];
        let measures = measures.into_iter();
        measures.filter_map(|(name, spread)| Some((name, spread?)))
    }

    /// The columns in which lower is better, by name: the measures, then each domain's perplexity.
    pub(super) fn columns(&self) -> impl Iterator<Item = (String, &Spread)> {
        let domains = self.perplexity.iter();
        let domains = domains.map(|(domain, spread)| (format!("perplexity.{domain}"), spread));
        let measures = self.measures();
        let measures = measures.map(|(name, spread)| (name.to_owned(), spread));
        measures.chain(domains)
    }

    pub(super) fn column(&self, name: &str) -> Option<&Spread> {
        let mut columns = self.columns();
        Some(columns.find(|(other, _)| other == name)?.1)
    }

    /// Adds the differences from the other methods.
    pub(super) fn compare(&mut self, others: &[Self]) {
        let others = others.iter().filter(|other| other.method != self.method);
        let differences = others.map(|other| {
            let columns = self.columns().filter_map(|(name, own)| {
                let theirs = other.column(&name)?;
                Some((name, Paired::of(&own.values, &theirs.values)))
            });
            (other.method.clone(), columns.collect())
        });
        self.differences = differences.collect();
    }

    /// The difference from another method in a column.
    pub fn difference(&self, from: &str, column: &str) -> Option<&Paired> {
        self.differences.get(from)?.get(column)
    }
}
