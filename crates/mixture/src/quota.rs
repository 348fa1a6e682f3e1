//! From weights to whole rows, exactly.

use serde::{Deserialize, Serialize};

/// Turns a target share into rows, interval by interval, without losing a fraction.
///
/// Each domain gets the floor or the ceiling of its share of an interval's rows; what it got too little or too much is
/// carried into the next interval. So the error of an interval stays under one row, and a domain whose share is less than
/// a row gets its row when it has saved up for it.
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

    /// Draws the rows of an interval: `target` sums to 1, the result sums to `rows`.
    ///
    /// The rows left over after every floor go to the domains with the largest carry + fraction; ties go by the order of
    /// names. A share that is whole up to rounding takes part with its exact number.
    pub fn draw(&mut self, target: &[f64], rows: u64) -> Vec<u64> {
        debug_assert_eq!(target.len(), self.carry.len());
        let shares: Vec<f64> = target.iter().map(|weight| weight * rows as f64).collect();
        let mut counts: Vec<u64> = shares.iter().map(|share| share.floor() as u64).collect();
        let left_over = rows.saturating_sub(counts.iter().sum()) as usize;
        let mut by_claim: Vec<usize> = (0..target.len())
            .filter(|&domain| shares[domain].fract() > 0.0)
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
