//! The intervals of a run, in a bounded number.

use std::collections::{BTreeMap, BTreeSet};

use ddk_run::records::{Drawn, DrawnLine, MixtureLine, Summary};

use super::{Bad, parsed};
use crate::api::{After, Domain, Mixture, MixtureDomain, finite};

/// Intervals at the most: of more, every second, fourth, … is kept.
const INTERVALS: usize = 1024;

/// The lines of `mixture.jsonl`.
#[derive(Debug)]
pub(super) struct Mixtures {
    stride: u64,
    lines: Vec<MixtureLine>,
    drawn: BTreeMap<u64, BTreeMap<String, Drawn>>,
    first: Option<MixtureLine>,
    last: Option<MixtureLine>,
    last_drawn: Option<BTreeMap<String, Drawn>>,
    tokens: BTreeMap<String, u64>,
}

impl Default for Mixtures {
    fn default() -> Self {
        Self {
            stride: 1,
            lines: Vec::new(),
            drawn: BTreeMap::new(),
            first: None,
            last: None,
            last_drawn: None,
            tokens: BTreeMap::new(),
        }
    }
}

impl Mixtures {
    /// Takes a line of either kind.
    pub(super) fn push(&mut self, line: &[u8], bad: &mut Bad) {
        let Some(value) = parsed::<serde_json::Value>(line, bad) else {
            return;
        };
        if value.get("drawn").is_some() {
            if let Some(line) = parsed::<DrawnLine>(line, bad) {
                self.push_drawn(line);
            }
        } else if let Some(line) = parsed::<MixtureLine>(line, bad) {
            self.push_set(line);
        }
    }

    fn push_set(&mut self, line: MixtureLine) {
        if line.interval.is_multiple_of(self.stride) {
            self.lines.push(line.clone());
        }
        self.first.get_or_insert_with(|| line.clone());
        self.last = Some(line);
        if self.lines.len() > INTERVALS {
            self.stride *= 2;
            let stride = self.stride;
            self.lines
                .retain(|line| line.interval.is_multiple_of(stride));
            self.drawn
                .retain(|interval, _| interval.is_multiple_of(stride));
        }
    }

    fn push_drawn(&mut self, line: DrawnLine) {
        for (domain, drawn) in &line.drawn {
            *self.tokens.entry(domain.clone()).or_default() += drawn.tokens;
        }
        self.last_drawn = Some(line.drawn.clone());
        if line.interval.is_multiple_of(self.stride) {
            self.drawn.insert(line.interval, line.drawn);
        }
    }

    pub(super) fn last(&self) -> Option<&MixtureLine> {
        self.last.as_ref()
    }

    /// Those that are kept, and the last.
    fn shown(&self) -> impl Iterator<Item = &MixtureLine> {
        let kept = self.lines.last().map(|line| line.interval);
        let last = self.last.as_ref();
        self.lines
            .iter()
            .chain(last.filter(move |line| Some(line.interval) != kept))
    }

    fn names(&self) -> BTreeSet<&String> {
        self.shown().flat_map(|line| line.weights.keys()).collect()
    }

    /// How each domain stood at the last evaluation.
    pub(super) fn domains(&self) -> Vec<Domain> {
        let Some(last) = &self.last else {
            return Vec::new();
        };
        let all: u64 = self.tokens.values().sum();
        let names = last.weights.keys();
        names
            .map(|name| {
                let of =
                    |values: &BTreeMap<String, f64>| values.get(name).copied().and_then(finite);
                let drawn = self.last_drawn.as_ref().and_then(|drawn| drawn.get(name));
                let tokens = self.tokens.get(name).copied();
                Domain {
                    name: name.clone(),
                    student_perplexity: of(&last.student_perplexity),
                    teacher_perplexity: of(&last.teacher_perplexity),
                    ratio: of(&last.ratio),
                    ratio_at_start: self.first.as_ref().and_then(|first| of(&first.ratio)),
                    weight: of(&last.weights),
                    target: of(&last.target),
                    token_share: tokens.and_then(|tokens| finite(tokens as f64 / all as f64)),
                    passes: drawn.map(|drawn| drawn.passes),
                }
            })
            .collect()
    }

    /// `/api/mixture`.
    pub(super) fn reply(&self, summary: Option<&Summary>) -> Mixture {
        let mut mixture = Mixture {
            policy: self.last.as_ref().map(|line| line.policy.clone()),
            ..Mixture::default()
        };
        for name in self.names() {
            mixture
                .domains
                .insert(name.clone(), MixtureDomain::default());
        }
        for line in self.shown() {
            mixture.interval.push(line.interval);
            mixture.step.push(line.step);
            if let Some(reason) = &line.refused {
                mixture.refused.insert(line.interval, reason.clone());
            }
            let drawn = self.drawn.get(&line.interval);
            for (name, columns) in &mut mixture.domains {
                let of =
                    |values: &BTreeMap<String, f64>| values.get(name).copied().and_then(finite);
                columns.weight.push(of(&line.weights));
                columns.target.push(of(&line.target));
                columns
                    .student_perplexity
                    .push(of(&line.student_perplexity));
                columns
                    .teacher_perplexity
                    .push(of(&line.teacher_perplexity));
                columns.ratio.push(of(&line.ratio));
                let tokens = drawn.and_then(|drawn| drawn.get(name));
                columns.tokens.push(tokens.map(|drawn| drawn.tokens));
            }
        }
        mixture.after = summary.map(|summary| {
            let of = |value: fn(&ddk_run::records::DomainSummary) -> f64| {
                let domains = summary.domains.iter();
                domains
                    .map(|(name, domain)| (name.clone(), value(domain)))
                    .collect()
            };
            After {
                step: summary.steps,
                student_perplexity: of(|domain| domain.student_perplexity_after),
                ratio: of(|domain| domain.ratio_after),
            }
        });
        mixture
    }
}
