//! The intervals of a run, thinned to a bounded number.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    part::{Gather, finite},
    scalars::Mean,
};
use crate::records::{ByDomain, DomainSummary, Drawn, DrawnLine, MixtureLine, Summary};

/// Maximum number of intervals. If there are more, only every second, fourth, … is kept.
const INTERVALS: usize = 1024;

/// The current state of a domain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// Name of the domain.
    pub name: String,
    /// The student's perplexity at the last evaluation.
    pub student_perplexity: Option<f64>,
    /// The teacher's perplexity.
    pub teacher_perplexity: Option<f64>,
    /// Student's over teacher's perplexity.
    pub ratio: Option<f64>,
    /// ln of the ratio, nats per token.
    pub gap: Option<f64>,
    /// The gap before the first step.
    pub gap_at_start: Option<f64>,
    /// Weight in the mixture.
    pub weight: Option<f64>,
    /// Share of the sequences after limits.
    pub target: Option<f64>,
    /// Share of the tokens of all completed intervals.
    pub token_share: Option<f64>,
    /// Epochs of the domain at the end of the last completed interval.
    pub epochs: Option<f64>,
}

/// An interval: its mixture and what it drew.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntervalRecord {
    /// The mixture, as in `mixture.jsonl`.
    #[serde(flatten)]
    pub mixture: MixtureLine,
    /// Tokens that earlier intervals drew.
    pub tokens_before: u64,
    /// What it drew by domain, once it has ended.
    pub drawn: Option<BTreeMap<String, Drawn>>,
}

/// The intervals of a run and its last evaluation: `/api/mixture`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    /// At most 1,024 intervals, evenly spaced, and the last.
    pub intervals: Vec<IntervalRecord>,
    /// Results of a finished run by domain.
    pub after: Option<BTreeMap<String, DomainSummary>>,
}

impl Mixture {
    /// The mean gap over the domains at each evaluation, in order, with the last one of a finished run.
    pub fn mean_gaps(&self) -> Vec<f64> {
        let mut last = None;
        let lines = self.intervals.iter().map(|interval| &interval.mixture);
        let is_new = |line: &&MixtureLine| {
            last.replace(line.evaluated_at_step) != Some(line.evaluated_at_step)
        };
        let gaps = lines.filter(is_new);
        let gaps = gaps.map(|line| Mean::over(line.gap.values().copied()));
        let after = self.after.iter().map(|domains| {
            let gaps = domains.values().map(|domain| domain.gap_after);
            Mean::over(gaps)
        });
        gaps.chain(after).flatten().collect()
    }
}

/// A line of `mixture.jsonl`.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum MixtureRecord {
    Drawn(DrawnLine),
    Set(Box<MixtureLine>),
}

/// Data gathered from `mixture.jsonl`.
#[derive(Debug, Default)]
pub(super) struct MixtureSeries {
    /// Evenly spaced intervals, and the last one.
    pub(super) intervals: Vec<IntervalRecord>,
    /// Every 2^`stride`-th interval is kept.
    stride: u32,
    /// Tokens of all completed intervals by domain.
    tokens: BTreeMap<String, u64>,
    last_drawn: BTreeMap<String, Drawn>,
    gap_at_start: ByDomain,
}

impl Gather for MixtureSeries {
    type Record = MixtureRecord;

    fn add(&mut self, record: MixtureRecord) {
        match record {
            MixtureRecord::Drawn(line) => {
                for (domain, drawn) in &line.drawn {
                    *self.tokens.entry(domain.clone()).or_default() += drawn.tokens;
                }
                self.last_drawn.clone_from(&line.drawn);
                let same = |kept: &&mut IntervalRecord| kept.mixture.interval == line.interval;
                if let Some(kept) = self.intervals.last_mut().filter(same) {
                    kept.drawn = Some(line.drawn);
                }
            }
            MixtureRecord::Set(mixture) => {
                if self.intervals.is_empty() {
                    self.gap_at_start.clone_from(&mixture.gap);
                }
                self.thin();
                self.intervals.push(IntervalRecord {
                    mixture: *mixture,
                    tokens_before: self.tokens.values().sum(),
                    drawn: None,
                });
            }
        }
    }
}

impl MixtureSeries {
    /// Makes room for an interval. Removes the last one unless its number is a multiple of the stride.
    fn thin(&mut self) {
        let is_kept =
            |stride: u32, kept: &IntervalRecord| kept.mixture.interval.is_multiple_of(1 << stride);
        self.intervals.pop_if(|last| !is_kept(self.stride, last));
        if self.intervals.len() > INTERVALS {
            self.stride += 1;
            self.intervals.retain(|kept| is_kept(self.stride, kept));
        }
    }

    /// The state of each domain at the last evaluation, which is the summary's if there is one.
    pub(super) fn domains(&self, summary: Option<&Summary>) -> Vec<Domain> {
        let Some(IntervalRecord { mixture: last, .. }) = self.intervals.last() else {
            return Vec::new();
        };
        let all: u64 = self.tokens.values().sum();
        let of_domain = |name: &String| {
            let of = |values: &ByDomain| values.get(name).copied().and_then(finite);
            let share = |tokens: &u64| finite(*tokens as f64 / all as f64);
            let mut domain = Domain {
                name: name.clone(),
                student_perplexity: of(&last.student_perplexity),
                teacher_perplexity: of(&last.teacher_perplexity),
                ratio: of(&last.ratio),
                gap: of(&last.gap),
                gap_at_start: of(&self.gap_at_start),
                weight: of(&last.weights),
                target: of(&last.target),
                token_share: self.tokens.get(name).and_then(share),
                epochs: self.last_drawn.get(name).map(|drawn| drawn.epochs),
            };
            if let Some(after) = summary.and_then(|summary| summary.domains.get(name)) {
                domain.student_perplexity = finite(after.student_perplexity_after);
                domain.ratio = finite(after.ratio_after);
                domain.gap = finite(after.gap_after);
                domain.token_share = finite(after.token_share);
            }
            domain
        };
        last.weights.keys().map(of_domain).collect()
    }
}
