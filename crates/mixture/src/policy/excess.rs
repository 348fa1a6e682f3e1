//! Shares in proportion to each domain's excess loss over the teacher, fading to equal shares.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    Decision, Feedback, Perplexities, Refused,
    decision::{of_domains, shares_of_domains},
    equations::softmax,
};

/// Added to each gap, as a share of the mean gap, so that a domain that has caught up keeps a share.
const EPSILON: f64 = 0.1;
/// The smallest mean gap to scale by, in nats: below it, differences between gaps are noise.
const LEAST_GAP: f64 = 0.02;
/// The smallest mean drop of an interval to scale by, in nats.
const LEAST_DROP: f64 = 0.002;
/// Fraction of the old value that a moving average keeps: that of the gains, and that of the weights.
const SMOOTHING: f64 = 0.5;
/// Maximum weight of a domain before the weights are normalized, in equal shares.
const CAP: f64 = 2.5;

/// Steers by the excess `g_i = ln(student's perplexity / teacher's)`, in nats per token.
///
/// The reducible loss of a domain falls about like a power law, so tokens should go in proportion to the gap times
/// what a token gains there. After interval k, with N domains, `mean` over the domains, and w the weights of the
/// interval that was evaluated:
///
/// - `d_i = g_i(k-1) - g_i(k)`, the drop of the interval;
/// - `u_i = ln((max(d_i, 0) + 0.1 max(mean d, 0.002)) / (w_i + 1/N))`, the drop per share;
/// - `v_i`, the moving average of `clip(u_i - mean u, -1, 1)`; 0 until the second interval has ended, because the
///   first one is the learning rate's warm-up;
/// - `q = softmax(ln(max(g_i, 0) + 0.1 max(mean max(g, 0), 0.02)) + gain v_i)`;
/// - `a_k = alpha * (share of the learning rate's decay that is left)`;
/// - `t = normalized(min(a_k q + (1 - a_k)/N, 2.5/N))`, and `w <- (w + t)/2`.
///
/// The target is linear in the gaps, so a gap that is far larger than the others does not take everything. The fade
/// lets the last steps train on equal weights, which are those of the mean gap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Excess {
    pub(super) alpha: f64,
    pub(super) update_every: u64,
    gain: f64,
    /// Intervals between an evaluation and the mixture that uses it: 0 or 1.
    lag: u64,
    /// Mixtures so far.
    turn: u64,
    /// The gaps measured last.
    gaps: Vec<f64>,
    /// v, by domain; empty before the second interval has ended.
    gains: Vec<f64>,
    /// The weights of the last `lag + 1` intervals. The first are those of the interval that was evaluated.
    weights: VecDeque<Vec<f64>>,
}

impl Excess {
    /// `alpha`: weight of the excess relative to equal weights before the learning rate decays, from 0 to 1. `gain`:
    /// exponent of what a share gained; 0 steers by the gaps alone. `update_every`: steps per interval. `lag`:
    /// intervals between an evaluation and the mixture that uses it.
    pub fn new(alpha: f64, gain: f64, update_every: u64, lag: u64) -> Self {
        Self {
            alpha,
            update_every,
            gain,
            lag,
            turn: 0,
            gaps: Vec::new(),
            gains: Vec::new(),
            weights: VecDeque::new(),
        }
    }

    /// The smallest and the largest weight of a domain.
    pub fn limits(alpha: f64, domains: usize) -> [f64; 2] {
        let count = domains as f64;
        let floor = (1.0 - alpha) / count;
        // The largest before the weights are normalized, if one domain has all of the excess.
        let largest = (alpha + floor).min(CAP / count);
        [floor, largest / (largest + floor * (count - 1.0))]
    }

    pub(crate) fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        let weights = self.weights.iter();
        Self {
            // A new domain has no drop to measure, so the gains start over.
            turn: 0,
            gaps: Vec::new(),
            gains: of_domains(&self.gains, kept, 0.0),
            weights: weights
                .map(|weights| shares_of_domains(weights, kept))
                .collect(),
            ..self.clone()
        }
    }

    pub(super) fn first(&mut self, at_start: &Perplexities) -> Result<Decision, Refused> {
        at_start.checked_ratios()?;
        *self = Self::new(self.alpha, self.gain, self.update_every, self.lag);
        self.update(at_start.gaps(), 1.0)
    }

    pub(super) fn next(
        &mut self,
        weights: &[f64],
        feedback: &Feedback<'_>,
    ) -> Result<Decision, Refused> {
        feedback.ratios()?;
        let gaps = feedback.perplexities.ok_or(Refused::NotMeasured)?.gaps();
        let mut new = self.clone();
        let decision = new.update(gaps, feedback.decay_left.clamp(0.0, 1.0))?;
        *self = new;
        Ok(Decision {
            previous: Some(weights.to_vec()),
            ..decision
        })
    }

    /// Updates the state for these gaps. `decay_left`: share of the learning rate's decay that is left.
    fn update(&mut self, gaps: Vec<f64>, decay_left: f64) -> Result<Decision, Refused> {
        let count = gaps.len() as f64;
        self.learn_gains(&gaps);
        let excess: Vec<f64> = gaps.iter().map(|gap| gap.max(0.0)).collect();
        let least = EPSILON * mean(&excess).max(LEAST_GAP);
        let gain = |domain: usize| self.gains.get(domain).copied().unwrap_or(0.0);
        let logits = excess.iter().enumerate();
        let logits = logits.map(|(domain, gap)| (gap + least).ln() + self.gain * gain(domain));
        let mut weights = softmax(&logits.collect::<Vec<_>>())?;
        let alpha = self.alpha * decay_left;
        for weight in &mut weights {
            *weight = (alpha * *weight + (1.0 - alpha) / count).min(CAP / count);
        }
        let sum: f64 = weights.iter().sum();
        let old = self.weights.back().filter(|old| old.len() == gaps.len());
        for (domain, weight) in weights.iter_mut().enumerate() {
            *weight /= sum;
            if let Some(old) = old {
                *weight = SMOOTHING * old[domain] + (1.0 - SMOOTHING) * *weight;
            }
        }
        self.weights.push_back(weights.clone());
        while self.weights.len() as u64 > self.lag + 1 {
            self.weights.pop_front();
        }
        self.gaps = gaps;
        self.turn += 1;
        Ok(Decision {
            excess: Some(excess),
            ..Decision::of(weights)
        })
    }

    /// Learns from the drop of the gaps over an interval, once the second interval has been evaluated.
    fn learn_gains(&mut self, gaps: &[f64]) {
        let weights = self.weights.front();
        let weights = weights.filter(|weights| weights.len() == gaps.len());
        let (Some(weights), true) = (weights, self.turn >= 2 + self.lag) else {
            return;
        };
        let drops = self.gaps.iter().zip(gaps);
        let drops: Vec<f64> = drops.map(|(before, now)| before - now).collect();
        let least = 0.1 * mean(&drops).max(LEAST_DROP);
        let equal = 1.0 / gaps.len() as f64;
        let rates = drops.iter().zip(weights);
        let rates = rates.map(|(drop, weight)| ((drop.max(0.0) + least) / (weight + equal)).ln());
        let rates: Vec<f64> = rates.collect();
        let middle = mean(&rates);
        let new = rates.iter().map(|rate| (rate - middle).clamp(-1.0, 1.0));
        self.gains = if self.gains.len() == gaps.len() {
            let both = self.gains.iter().zip(new);
            both.map(|(old, new)| SMOOTHING * old + (1.0 - SMOOTHING) * new)
                .collect()
        } else {
            new.collect()
        };
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
