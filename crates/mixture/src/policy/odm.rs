//! Online Data Mixing: "Efficient Online Data Mixing For Language Model Pre-Training" (Albalak et al., 2023,
//! arXiv 2312.02406).

use serde::{Deserialize, Serialize};

use crate::{
    Decision, Feedback, Refused,
    decision::of_domains,
    equations::{check_weights, softmax},
};

/// An EXP3 bandit over the domains, with the training loss as the reward. `R` estimates each domain's reward, and
///
/// - `R_i <- a R_i + (1 - a) loss_i / w_i` for the domains that were drawn (importance-weighted with smoothing a);
/// - `eps_t = min(1 / N, sqrt(ln N / (N t)))`;
/// - `w_i = (1 - N eps_t) softmax(eps_{t-1} R)_i + eps_t`.
///
/// The first turn has no reward yet, so its weights are equal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Odm {
    smoothing: f64,
    /// The turn that the current weights belong to, from 1; 0 before the first interval.
    turn: u64,
    /// R, by domain.
    reward: Vec<f64>,
}

/// The exploration rate of a turn.
fn exploration(domains: usize, turn: u64) -> f64 {
    let count = domains as f64;
    (count.ln() / (count * turn.max(1) as f64))
        .sqrt()
        .min(1.0 / count)
}

impl Odm {
    /// `smoothing` is the fraction of a domain's estimated reward that an update keeps: 0 or more and less than 1.
    pub fn new(smoothing: f64) -> Self {
        Self {
            smoothing,
            turn: 0,
            reward: Vec::new(),
        }
    }

    pub(crate) fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        let stay = kept.iter().filter_map(|old| self.reward.get((*old)?));
        let stay: Vec<f64> = stay.copied().collect();
        // A new domain counts as an average one until it is drawn.
        let mean = stay.iter().sum::<f64>() / stay.len().max(1) as f64;
        Self {
            reward: of_domains(&self.reward, kept, mean),
            ..self.clone()
        }
    }

    pub(super) fn first(&mut self, natural: &[f64]) -> Result<Decision, Refused> {
        check_weights(natural, natural.len())?;
        self.turn = 1;
        self.reward = vec![0.0; natural.len()];
        let equal = vec![1.0 / natural.len() as f64; natural.len()];
        Ok(Decision::of(equal))
    }

    pub(super) fn next(
        &mut self,
        weights: &[f64],
        feedback: &Feedback<'_>,
    ) -> Result<Decision, Refused> {
        let losses = feedback.training.losses()?;
        let count = losses.len();
        check_weights(weights, count)?;
        let mut reward = self.reward.clone();
        if reward.len() != count {
            reward = vec![0.0; count];
        }
        for (domain, loss) in losses.iter().enumerate() {
            // A domain that was drawn has a positive weight. If it underflowed to 0, there is nothing to divide by.
            if let (Some(loss), true) = (loss, weights[domain] > 0.0) {
                let weighted = loss / weights[domain];
                let new = self.smoothing * reward[domain] + (1.0 - self.smoothing) * weighted;
                if !new.is_finite() {
                    return Err(Refused::loss("loss", domain, *loss));
                }
                reward[domain] = new;
            }
        }
        let turn = self.turn.max(1) + 1;
        let (before, now) = (exploration(count, turn - 1), exploration(count, turn));
        let logits: Vec<f64> = reward.iter().map(|reward| before * reward).collect();
        let greedy = (1.0 - count as f64 * now).max(0.0);
        let mut new = softmax(&logits)?;
        for weight in &mut new {
            *weight = greedy * *weight + now;
        }
        (self.turn, self.reward) = (turn, reward);
        Ok(Decision {
            previous: Some(weights.to_vec()),
            losses: Some(losses),
            ..Decision::of(new)
        })
    }
}
