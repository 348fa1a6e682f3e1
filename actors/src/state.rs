//! What the loop has to remember: the part of a checkpoint that is not the student's.

use std::collections::VecDeque;

use ddk_corpus::Cursor;
use ddk_mixture::{Perplexities, PolicyState, Quota, TrainingSums, shares_of_domains};
use ddk_run::{Lengths, Measured};
use ddk_settings::Recovery;
use serde::{Deserialize, Serialize};

use crate::{Interval, RunPlan, interval::Evaluation};

/// The loop at a step boundary.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoopState {
    /// The last step made.
    pub step: u64,
    /// The interval that it belongs to.
    pub interval: Interval,
    /// Perplexities before the first step.
    pub baseline: Perplexities,
    /// What the next interval is decided by, where mixtures lag: the evaluation made when this interval
    /// began, empty where none was due then.
    pub lagged_evaluation: Option<Evaluation>,
    /// Tokens drawn from each domain in this interval so far.
    pub interval_tokens: Vec<u64>,
    /// Losses by domain of this interval's updates so far, where the mixture is moved by them.
    pub interval_losses: TrainingSums,
    /// Gap to the teacher at each evaluation so far.
    pub measured: Vec<Measured>,
    /// Sums over the run.
    pub totals: Totals,
    /// Bytes of the run's files.
    pub lengths: Lengths,
    /// The losses that a spike is told by.
    pub loss_history: LossHistory,
    /// Steps whose update was skipped since the last update. Steps on the skip list do not count.
    pub consecutive_skips: Vec<u64>,
}

/// How a forked run follows from the run that it is forked from.
#[derive(Debug, Clone, PartialEq)]
pub struct Fork<'a> {
    /// Where each new domain was in the old list, where its content is the same.
    pub kept: &'a [Option<usize>],
    /// Rows of a pass over each old domain.
    pub old_rows: &'a [u64],
    /// Rows of a pass over each new domain.
    pub new_rows: &'a [u64],
    /// Rows of an optimizer step, and the seed, of the old run.
    pub sequences_per_step: u64,
    /// See above.
    pub seed: u64,
    /// Whether the new run draws and measures as the old one did: the same seed, rows of a step, and settings
    /// of perplexities.
    pub alike: bool,
}

impl Fork<'_> {
    /// Whether the new run can continue within the old one's interval.
    fn within_interval(&self) -> bool {
        let in_place = |(new, old): (usize, &Option<usize>)| *old == Some(new);
        self.alike && self.old_rows == self.new_rows && self.kept.iter().enumerate().all(in_place)
    }

    /// Where a new domain stands, after where the old one it was stood. Where its rows are others now
    /// (another length, another packing), as far through the pass as it was.
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
    /// The loop before the first step: in an interval without steps, with nothing measured.
    pub fn new(plan: &RunPlan, policy: PolicyState) -> Self {
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

    /// Steps of the interval that have been made.
    pub fn steps_done(&self) -> u64 {
        self.step + 1 - self.interval.first_step
    }

    /// Whether the interval has been trained on to its end.
    pub fn at_interval_end(&self) -> bool {
        self.step == self.interval.last_step()
    }

    /// Where each domain stands after the rows of all steps made.
    pub fn cursors(
        &self,
        seed: u64,
        sequences_per_step: u64,
        domain_sequences: &[u64],
    ) -> Vec<Cursor> {
        let order = self.interval.order(seed);
        let rows = (self.steps_done() * sequences_per_step) as usize;
        self.interval.cursors_after(&order, rows, domain_sequences)
    }

    /// The state that a forked run starts with, its files empty. Where nothing that an interval depends on
    /// differs, it continues within the interval; otherwise the interval ends here, and the first thing that
    /// the new run does is to measure and set a mixture.
    pub fn fork(&self, fork: &Fork<'_>) -> Self {
        let mut state = self.clone();
        state.lengths = Lengths::default();
        // The checkpoints that were measured are the old run's.
        state.measured = Vec::new();
        let count = fork.kept.len();
        if fork.within_interval() {
            return state;
        }
        let old = &self.interval;
        let cursors = self.cursors(fork.seed, fork.sequences_per_step, fork.old_rows);
        state.interval = Interval {
            index: old.index,
            first_step: old.first_step,
            steps: self.steps_done(),
            weights: shares_of_domains(&old.weights, fork.kept),
            target: shares_of_domains(&old.target, fork.kept),
            counts: vec![0; count],
            policy: old.policy.of_domains(fork.kept),
            quota: old.quota.of_domains(fork.kept),
            cursors: (0..count).map(|new| fork.cursor(new, &cursors)).collect(),
            // As for the perplexities at the start.
            evaluated: Evaluation::default(),
            line: None,
        };
        // Measured again on the new list: what a forked run begins with is what it is compared with.
        state.baseline = Perplexities::default();
        state.lagged_evaluation = None;
        state.interval_tokens = vec![0; count];
        state.interval_losses = TrainingSums::new(count);
        let tokens = |old: &Option<usize>| old.map_or(0, |old| self.totals.tokens[old]);
        state.totals.tokens = fork.kept.iter().map(tokens).collect();
        state
    }
}

/// Losses are sums of fp32 numbers: a relative spread below this is rounding.
const LOSS_RESOLUTION: f64 = 1e-6;

/// The last losses of a run, those that are finite.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LossHistory(VecDeque<f64>);

impl LossHistory {
    /// Whether `loss` is a spike: more than `recovery.spike_threshold` standard deviations above the mean of the
    /// losses before it. The deviation counts as at least the rounding of a loss.
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

    /// Remembers a loss that was trained on.
    pub fn push(&mut self, loss: f64, recovery: &Recovery) {
        if loss.is_finite() {
            self.0.push_back(loss);
            while self.0.len() > recovery.spike_window {
                self.0.pop_front();
            }
        }
    }
}

/// Sums over a run, restarts included.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Tokens trained on, by domain.
    pub tokens: Vec<u64>,
    /// From the start of the workers to the last step.
    pub run_seconds: f64,
    /// From the first batch sent to the last step.
    pub distill_seconds: f64,
    /// The teachers' busy time within it, without evaluations.
    pub teacher_busy_seconds: f64,
    /// The student worker's, without evaluations.
    pub student_busy_seconds: f64,
    /// Busy time of evaluations within it.
    pub evaluation_seconds: f64,
    /// From the last update of an interval to the first micro-batch of the next.
    pub boundary_seconds: f64,
    /// Time that replicas of the teacher waited for rows while there was a mixture to draw them by.
    pub data_wait_seconds: f64,
    /// Time that training waited for snapshots.
    pub save_stall_seconds: f64,
    /// Time that somebody paused the run for; no part of `distill_seconds`.
    pub paused_seconds: f64,
    /// Floating-point operations of the teacher's labeling.
    pub teacher_flops: f64,
    /// Of the student's training.
    pub student_flops: f64,
    /// Of all evaluations, the teacher's included.
    pub evaluation_flops: f64,
    /// Of those that the mixture was decided by.
    pub mixture_flops: f64,
}

impl Totals {
    /// Zero, for so many domains.
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
        // Equal losses: rounding is no spike, a rise is.
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
