//! From weights to whole rows, exactly.

use serde::{Deserialize, Serialize};

/// TimeSlice a target share into rows, interval by interval, without losing a fraction.
///
/// Each domain gets the floor or the ceiling of its share of an interval's rows; what it got too little or
/// too much is carried into the next interval. So the error of an interval stays under one row, and a domain
/// whose share is less than a row gets its row when it has saved up for it.
///
/// Over a run a domain stays within `(N - 1) / 2` rows of its share, for N domains, whatever the targets. Carries of
/// real mixtures stay about one row.
///
/// Proof: any `s` domains together are owed at most `u(s) = s (N - s) / 2`. Take the `s` domains that are owed the
/// most after a draw. If all of them got a leftover row, or if they got all leftover rows, they are owed no more
/// than before. Otherwise `b` of them competed for a row and got none, while `p` other domains got one on larger
/// claims. So the `b` claims are at most `b / (b + p)` of all `b + p` claims, and the `s` domains are owed at most
/// `(p u(s - b) + b u(s + p) + b p) / (b + p)`. That equals `u(s) - b p / 2 + b p / (b + p)`, which is at most
/// `u(s)`.
///
/// With three domains, targets that change the number of leftover rows come arbitrarily close to the bound. With
/// one leftover row in each interval, the worst targets attain `1/2 + 1/3 + … + 1/N`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quota {
    /// Rows that each domain is owed (negative: was given ahead). They sum to 0 up to rounding.
    carry: Vec<f64>,
}

impl Quota {
    /// A quota over `domains` domains that owes nothing.
    pub fn new(domains: usize) -> Self {
        Self {
            carry: vec![0.0; domains],
        }
    }

    /// Rows owed to each domain.
    pub fn carry(&self) -> &[f64] {
        &self.carry
    }

    /// The quota for another list of domains: `kept[i]` is where the new domain i was in the old list. What
    /// is owed to those that stay is kept, less its mean, so that it still sums to 0.
    pub fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        let of = |old: &Option<usize>| old.and_then(|old| self.carry.get(old).copied());
        let carry: Vec<f64> = kept.iter().map(|old| of(old).unwrap_or(0.0)).collect();
        let mean = carry.iter().sum::<f64>() / carry.len().max(1) as f64;
        Self {
            carry: carry.iter().map(|owed| owed - mean).collect(),
        }
    }

    /// Draws the rows of an interval: `target` sums to 1, the result sums to `rows`.
    ///
    /// The rows left over after every floor go to the domains with the largest carry + fraction; ties go by
    /// the order of names. A share that is whole up to rounding is drawn as that whole number: a share that
    /// was set to the rows a domain has left never gets one more.
    pub fn draw(&mut self, target: &[f64], rows: u64) -> Vec<u64> {
        assert_eq!(target.len(), self.carry.len());
        let shares: Vec<f64> = target.iter().map(|weight| weight * rows as f64).collect();
        let rounding = rows as f64 * 16.0 * f64::EPSILON;
        let is_whole = |share: f64| (share - share.round()).abs() <= rounding;
        let mut counts: Vec<u64> = shares
            .iter()
            .map(|&share| {
                if is_whole(share) {
                    share.round() as u64
                } else {
                    share.floor() as u64
                }
            })
            .collect();
        let left_over = rows.saturating_sub(counts.iter().sum()) as usize;
        let mut by_claim: Vec<usize> = (0..target.len())
            .filter(|&domain| !is_whole(shares[domain]))
            .collect();
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
