//! The primary comparisons: few claims, stated before the runs, and corrected for their number.

use serde::Serialize;

use super::{MethodResult, find};
use crate::statistics::{Paired, holm};

/// The methods that steer, best first. The claims are for the first one among the methods of a comparison.
const CANDIDATES: [&str; 2] = ["excess", "ddk"];
/// Nats by which the mean gap may exceed that of equal weights.
const MARGIN: f64 = 0.01;
/// The probability of any false claim among those that hold.
const LEVEL: f64 = 0.05;

/// What is claimed: that a column of the candidate is below another method's plus a margin.
const CLAIMS: [(&str, &str, f64); 4] = [
    ("mean_gap", "kd", 0.0),
    ("worst_gap", "kd", 0.0),
    ("worst_gap", "ddk-equal", 0.0),
    ("mean_gap", "ddk-equal", MARGIN),
];

/// A claim and its evidence.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Primary {
    /// The method that the claim is about.
    pub method: String,
    /// The measure, a column name of [`MethodResult::best_in`].
    pub measure: String,
    /// The method that it is compared with.
    pub other: String,
    /// The claim: the difference is below this margin, in nats.
    pub margin: f64,
    /// The difference, paired by seed.
    pub difference: Paired,
    /// The p-value of the claim, two-sided; `None` for a single seed.
    pub p: Option<f64>,
    /// The p-value after Holm's correction over the claims of this comparison.
    pub p_holm: Option<f64>,
    /// Whether the claim holds at 95%, corrected.
    pub holds: bool,
}

/// The claims that can be made with these methods.
pub(super) fn of(methods: &[MethodResult]) -> Vec<Primary> {
    let mut candidates = CANDIDATES.iter();
    let Some(candidate) = candidates.find_map(|name| find(methods, Some(name))) else {
        return Vec::new();
    };
    let claims = CLAIMS.iter().filter_map(|&(measure, other, margin)| {
        let difference = *candidate.difference(other, measure)?;
        let p = difference.p_below(margin);
        Some(Primary {
            method: candidate.method.clone(),
            measure: measure.to_owned(),
            other: other.to_owned(),
            margin,
            difference,
            p,
            p_holm: None,
            holds: false,
        })
    });
    let mut claims: Vec<Primary> = claims.collect();
    let p: Option<Vec<f64>> = claims.iter().map(|claim| claim.p).collect();
    for (claim, adjusted) in claims.iter_mut().zip(holm(&p.unwrap_or_default())) {
        claim.p_holm = Some(adjusted);
        claim.holds = adjusted <= LEVEL;
    }
    claims
}
