//! The state of the training loop: the part of a checkpoint that does not belong to the student.

use std::collections::VecDeque;

use ddk_corpus::Cursor;
use ddk_mixture::{Perplexities, Policy, Quota, TrainingSums, shares_of_domains};
use ddk_run::{Lengths, Measured};
use ddk_settings::Recovery;
use serde::{Deserialize, Serialize};

use crate::{
    Interval, RunPlan,
    interval::{Evaluation, Patience},
};

/// The state of the training loop at a step boundary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoopState {
    /// The last completed step.
    pub step: u64,
    /// The interval of that step.
    pub interval: Interval,
    /// Perplexities before the first step.
    pub baseline: Perplexities,
    /// If mixtures lag, the evaluation that decides the next interval. It was made when this interval began, and is
    /// empty if none was due then.
    pub lagged_evaluation: Option<Evaluation>,
    /// Tokens drawn from each domain in this interval so far.
    pub interval_tokens: Vec<u64>,
    /// Losses of this interval's updates so far, by domain, if the mixture depends on them.
    pub interval_losses: TrainingSums,
    /// Gap to the teacher at each evaluation so far.
    pub measured: Vec<Measured>,
    /// Sums over the run.
    pub totals: Totals,
    /// Byte lengths of the run's files.
    pub lengths: Lengths,
    /// Recent losses, for detecting spikes.
    pub loss_history: LossHistory,
    /// Steps skipped since the last update. Steps on the skip list do not count.
    pub consecutive_skips: Vec<u64>,
}

/// How a forked run differs from the run it is forked from.
#[derive(Debug, Clone, PartialEq)]
pub struct Fork<'a> {
    /// For each new domain, its index in the old list. None if its content is not the same.
    pub kept: &'a [Option<usize>],
    /// Sequences per epoch of each old domain.
    pub old_rows: &'a [u64],
    /// Sequences per epoch of each new domain.
    pub new_rows: &'a [u64],
    /// Sequences per optimizer step of the old run.
    pub sequences_per_step: u64,
    /// Seed of the old run.
    pub seed: u64,
    /// Whether the new run draws and measures like the old one: the same seed, sequences per step, and settings for
    /// perplexities.
    pub alike: bool,
}

impl Fork<'_> {
    /// Whether the new run can continue within the old run's interval.
    fn within_interval(&self) -> bool {
        let in_place = |(new, old): (usize, &Option<usize>)| *old == Some(new);
        self.alike && self.old_rows == self.new_rows && self.kept.iter().enumerate().all(in_place)
    }

    /// The cursor of a new domain, from the old domain's cursor. If its sequences changed (another length, another
    /// packing), the cursor keeps its fraction of the epoch.
    fn cursor(&self, new: usize, cursors: &[Cursor]) -> Cursor {
        let Some(old) = self.kept[new] else {
            return Cursor::default();
        };
        let cursor = cursors[old];
        let (then, now) = (self.old_rows[old].max(1), self.new_rows[new]);
        Cursor {
            epoch: cursor.epoch,
            index: (u128::from(cursor.index) * u128::from(now) / u128::from(then)) as u64,
        }
    }
}

impl LoopState {
    /// The state before the first step: an interval without steps, and nothing measured.
    pub fn new(plan: &RunPlan, policy: Policy) -> Self {
        let domains = plan.domains.len();
        Self {
            step: 0,
            interval: Interval {
                index: 0,
                first_step: 1,
                steps: 0,
                weights: plan.natural.clone(),
                target: plan.natural.clone(),
                counts: vec![0; domains],
                policy,
                quota: Quota::new(domains),
                cursors: vec![Cursor::default(); domains],
                evaluated: Evaluation::default(),
                patience: Patience::default(),
                line: None,
            },
            baseline: Perplexities::default(),
            lagged_evaluation: None,
            interval_tokens: vec![0; domains],
            interval_losses: TrainingSums::new(domains),
            measured: Vec::new(),
            totals: Totals::new(domains),
            lengths: Lengths::default(),
            loss_history: LossHistory::default(),
            consecutive_skips: Vec::new(),
        }
    }

    /// Completed steps of the interval.
    pub fn steps_done(&self) -> u64 {
        self.step + 1 - self.interval.first_step
    }

    /// Whether all steps of the interval are completed.
    pub fn at_interval_end(&self) -> bool {
        self.step == self.interval.last_step()
    }

    /// The cursor of each domain after all completed steps.
    pub fn cursors(
        &self,
        seed: u64,
        sequences_per_step: u64,
        domain_sequences: &[u64],
    ) -> Vec<Cursor> {
        let rows = (self.steps_done() * sequences_per_step) as usize;
        let mut drawn = vec![0; domain_sequences.len()];
        for domain in self.interval.order(seed).into_iter().take(rows) {
            drawn[usize::from(domain)] += 1;
        }
        self.interval.cursors_after(&drawn, domain_sequences)
    }

    /// The state that a forked run starts with, with empty files. If nothing that an interval depends on has changed,
    /// the run continues within the interval. Otherwise the interval ends here, and the new run first evaluates and
    /// sets a mixture.
    pub fn fork(&self, fork: &Fork<'_>) -> Self {
        let mut state = self.clone();
        state.lengths = Lengths::default();
        // The measured checkpoints belong to the old run.
        state.measured = Vec::new();
        state.interval.patience = Patience::default();
        let count = fork.kept.len();
        if fork.within_interval() {
            return state;
        }
        let old = &self.interval;
        let cursors = self.cursors(fork.seed, fork.sequences_per_step, fork.old_rows);
        state.interval = Interval {
            steps: self.steps_done(),
            weights: shares_of_domains(&old.weights, fork.kept),
            target: shares_of_domains(&old.target, fork.kept),
            counts: vec![0; count],
            policy: old.policy.of_domains(fork.kept),
            quota: old.quota.of_domains(fork.kept),
            cursors: (0..count).map(|new| fork.cursor(new, &cursors)).collect(),
            // Measured again, like the baseline below.
            evaluated: Evaluation::default(),
            patience: Patience::default(),
            ..old.clone()
        };
        // The fork measures its baseline again on the new domains, because its results are compared with its own
        // start.
        state.baseline = Perplexities::default();
        state.lagged_evaluation = None;
        state.interval_tokens = vec![0; count];
        state.interval_losses = TrainingSums::new(count);
        let tokens = |old: &Option<usize>| old.map_or(0, |old| self.totals.tokens[old]);
        state.totals.tokens = fork.kept.iter().map(tokens).collect();
        state
    }
}

/// Losses are sums of fp32 numbers, so a relative spread below this is rounding.
const LOSS_RESOLUTION: f64 = 1e-6;

/// The last finite losses of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LossHistory(VecDeque<f64>);

impl LossHistory {
    /// Whether `loss` is a spike: more than `recovery.spike_threshold` standard deviations above the mean of the
    /// previous losses. The deviation counts as at least the rounding error of a loss.
    pub fn is_spike(&self, loss: f64, recovery: &Recovery) -> bool {
        let count = self.0.len();
        if !loss.is_finite() || count < recovery.spike_min_history.max(2) {
            return false;
        }
        let mean = self.0.iter().sum::<f64>() / count as f64;
        let squares: f64 = self.0.iter().map(|loss| (loss - mean).powi(2)).sum();
        let deviation = (squares / (count - 1) as f64).sqrt();
        let deviation = deviation.max(LOSS_RESOLUTION * mean.abs());
        loss > mean + recovery.spike_threshold * deviation
    }

    /// Adds the loss of a step that was trained on.
    pub fn push(&mut self, loss: f64, recovery: &Recovery) {
        if loss.is_finite() {
            self.0.push_back(loss);
            while self.0.len() > recovery.spike_window {
                self.0.pop_front();
            }
        }
    }
}

/// Sums over a run, including restarts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens trained on, by domain.
    pub tokens: Vec<u64>,
    /// Time from the start of the workers to the last step.
    pub run_seconds: f64,
    /// Time from the first batch sent to the last step.
    pub distill_seconds: f64,
    /// Busy time of the teachers within `distill_seconds`, without evaluations.
    pub teacher_busy_seconds: f64,
    /// Busy time of the student's worker within `distill_seconds`, without evaluations.
    pub student_busy_seconds: f64,
    /// Busy time of evaluations within `distill_seconds`.
    pub evaluation_seconds: f64,
    /// Time from the last update of an interval to the first micro-batch of the next one.
    pub boundary_seconds: f64,
    /// Time that teacher replicas waited for sequences while a mixture was set.
    pub data_wait_seconds: f64,
    /// Time that training waited for snapshots.
    pub save_stall_seconds: f64,
    /// Time that the run was paused; not part of `distill_seconds`.
    pub paused_seconds: f64,
    /// Floating-point operations of the teacher's labeling.
    pub teacher_flops: f64,
    /// Floating-point operations of the teacher's labeling that the cache saved.
    #[serde(default)]
    pub teacher_flops_saved: f64,
    /// Floating-point operations of the student's training.
    pub student_flops: f64,
    /// Floating-point operations of all evaluations, including the teacher's.
    pub evaluation_flops: f64,
    /// The part of `evaluation_flops` that evaluated the teacher.
    #[serde(default)]
    pub teacher_evaluation_flops: f64,
    /// Floating-point operations of the evaluations that decide mixtures, including the teacher's.
    pub mixture_flops: f64,
}

impl Totals {
    /// Zeros for `domains` domains.
    pub fn new(domains: usize) -> Self {
        Self {
            tokens: vec![0; domains],
            ..Self::default()
        }
    }

    /// Tokens of all domains.
    pub fn all_tokens(&self) -> u64 {
        self.tokens.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use ddk_settings::SpikeAction;

    use super::*;

    #[test]
    fn a_spike_is_measured_by_the_spread_of_losses_and_never_by_rounding() {
        let recovery = Recovery {
            spike_action: SpikeAction::Skip,
            spike_threshold: 3.0,
            spike_window: 4,
            spike_min_history: 4,
            ..Recovery::default()
        };
        let window = |losses: [f64; 4]| {
            let mut window = LossHistory::default();
            losses.iter().for_each(|loss| window.push(*loss, &recovery));
            window
        };
        // Mean 2, standard deviation sqrt(2 / 3).
        let varied = window([1.0, 2.0, 2.0, 3.0]);
        assert!(!varied.is_spike(4.4, &recovery) && varied.is_spike(4.5, &recovery));
        // With equal losses, rounding is not a spike, but a rise is.
        for equal in [5.0, 0.1, 1.0 / 3.0] {
            let equal_ones = window([equal; 4]);
            assert!(!equal_ones.is_spike(equal * (1.0 + f64::from(f32::EPSILON)), &recovery));
            assert!(equal_ones.is_spike(1.01 * equal, &recovery));
        }
        let mut few = LossHistory::default();
        few.push(1.0, &recovery);
        assert!(!few.is_spike(100.0, &recovery));
    }
}
