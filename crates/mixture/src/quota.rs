//! Converts weights into whole sequences without losing a fraction.

use serde::{Deserialize, Serialize};

use crate::decision::of_domains;

/// Turns a target share into sequences, interval by interval, without losing a fraction.
///
/// Each domain gets the floor or the ceiling of its share of an interval's sequences. The difference carries over
/// to the next interval. So the error of an interval stays below one sequence. A domain whose share is less than
/// one sequence gets one when its carry has grown enough.
///
/// Over a run, a domain stays within `(N - 1) / 2` sequences of its share, for N domains, whatever the targets.
/// With real mixtures, the carry stays around one sequence.
///
/// Proof: any `s` domains together are owed at most `u(s) = s (N - s) / 2`. Take the `s` domains that are owed the
/// most after a draw. If all of them got a leftover sequence, or if they got all leftover sequences, they are owed
/// no more than before. Otherwise `b` of them competed for a leftover sequence and got none, while `p` other
/// domains got one with larger claims. So the `b` claims are at most `b / (b + p)` of all `b + p` claims, and the
/// `s` domains are owed at most `(p u(s - b) + b u(s + p) + b p) / (b + p)`. That equals
/// `u(s) - b p / 2 + b p / (b + p)`, which is at most `u(s)`.
///
/// With three domains, targets that change the number of leftover sequences come arbitrarily close to the bound.
/// With one leftover sequence per interval, the worst targets attain `1/2 + 1/3 + … + 1/N`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// Sequences that each domain is owed; negative if it got too many. They sum to 0 up to rounding.
    carry: Vec<f64>,
}

impl Quota {
    /// Creates a quota over `domains` domains that owes nothing.
    pub fn new(domains: usize) -> Self {
        Self {
            carry: vec![0.0; domains],
        }
    }

    /// Sequences owed to each domain.
    pub fn carry(&self) -> &[f64] {
        &self.carry
    }

    /// Converts the quota to another list of domains: `kept[i]` is the index of new domain i in the old list.
    /// Domains that stay keep what they are owed, minus the mean, so the sum is still 0.
    pub fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        let carry = of_domains(&self.carry, kept, 0.0);
        let mean = carry.iter().sum::<f64>() / carry.len().max(1) as f64;
        Self {
            carry: carry.iter().map(|owed| owed - mean).collect(),
        }
    }

    /// Draws the sequences of an interval: `target` sums to 1, the result sums to `rows`.
    ///
    /// The sequences left over after rounding down go to the domains with the largest carry + fraction. Ties go by
    /// the order of names. A share that is whole up to rounding errors is drawn as that whole number. So a share
    /// that was set to the sequences a domain has left never gets one more.
    pub fn draw(&mut self, target: &[f64], rows: u64) -> Vec<u64> {
        assert_eq!(target.len(), self.carry.len());
        let shares: Vec<f64> = target.iter().map(|weight| weight * rows as f64).collect();
        let rounding = rows as f64 * 16.0 * f64::EPSILON;
        let is_whole = |share: f64| (share - share.round()).abs() <= rounding;
        let whole = |&share: &f64| {
            if is_whole(share) {
                share.round() as u64
            } else {
                share.floor() as u64
            }
        };
        let mut counts: Vec<u64> = shares.iter().map(whole).collect();
        let left_over = rows.saturating_sub(counts.iter().sum()) as usize;
        let is_split = |&domain: &usize| !is_whole(shares[domain]);
        let mut by_claim: Vec<usize> = (0..target.len()).filter(is_split).collect();
        let claim = |domain: usize| self.carry[domain] + shares[domain].fract();
        by_claim.sort_by(|&a, &b| claim(b).total_cmp(&claim(a)).then(a.cmp(&b)));
        for &domain in by_claim.iter().take(left_over) {
            counts[domain] += 1;
        }
        for (domain, count) in counts.iter().enumerate() {
            self.carry[domain] += shares[domain] - *count as f64;
        }
        counts
    }
}
