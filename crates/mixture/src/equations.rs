//! Equations 1 and 2 of "DDK: Distilling Domain Knowledge for Efficient Large Language Models" (NeurIPS 2024), and
//! the math that other policies share with them.

/// Why the feedback of an interval yields no new mixture. `mixture.jsonl` records the text as `refused`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// A perplexity ratio that is NaN, infinite or not positive.
    #[error(
        "the perplexity ratio of domain {domain} is {ratio}, which is not a positive finite number"
    )]
    Ratio {
        /// Index of the domain, in the order of names.
        domain: usize,
        /// The offending ratio.
        ratio: f64,
    },
    /// A perplexity that is NaN, infinite, not positive or absurdly large.
    #[error(
        "the {model}'s perplexity of domain {domain} is {value}, which is no perplexity of a working model"
    )]
    Perplexity {
        /// "student" or "teacher".
        model: &'static str,
        /// Index of the domain, in the order of names.
        domain: usize,
        /// The offending perplexity.
        value: f64,
    },
    /// A training loss, or its excess over the reference, that is NaN, infinite, negative or absurdly large.
    #[error("the {what} of domain {domain} is {value}, which is not a loss of a working model")]
    Training {
        /// "loss" or "excess".
        what: &'static str,
        /// Index of the domain, in the order of names.
        domain: usize,
        /// The offending value.
        value: f64,
    },
    /// The policy needs perplexities, but none were measured.
    #[error("no perplexities were measured")]
    NotMeasured,
    /// A previous weight that is NaN, infinite or negative.
    #[error(
        "the previous weight of domain {domain} is {weight}, which is not a finite number of at least 0"
    )]
    Previous {
        /// Index of the domain, in the order of names.
        domain: usize,
        /// The offending weight.
        weight: f64,
    },
    /// An alpha that is NaN or outside 0 to 1.
    #[error("alpha is {0}, which is not a number from 0 to 1")]
    Alpha(f64),
    /// Lists that differ in length or are empty.
    #[error("expected {expected} values, one for each domain, but got {got}")]
    Length {
        /// Domains of the mixture.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// Previous weights that sum to 0, so no domain could be drawn.
    #[error("the previous weights hold no mass")]
    NoMass,
}

/// Eq. 1, the domain discrepancy factor: the softmax of the perplexity ratios (student's over teacher's).
///
/// Subtracts the largest ratio first, because `exp` of a ratio overflows for a student trained from scratch.
///
/// # Errors
/// If there is no ratio, or if one is not a positive finite number.
pub fn discrepancy(ratios: &[f64]) -> Result<Vec<f64>, Refused> {
    check(ratios, ratios.len())?;
    softmax(ratios)
}

/// Eq. 2, the factor smooth update: `alpha * normalized(previous * exp(ratio)) + (1 - alpha) / N`.
///
/// Computed in log space. A previous weight of 0 stays 0 before the floor is added.
///
/// # Errors
/// If the lists are empty or differ in length, if a weight, a ratio or `alpha` is out of range, or if all previous
/// weights are 0.
pub fn smooth_update(previous: &[f64], ratios: &[f64], alpha: f64) -> Result<Vec<f64>, Refused> {
    check(ratios, previous.len())?;
    if !(0.0..=1.0).contains(&alpha) {
        return Err(Refused::Alpha(alpha));
    }
    let mut weights = tilted(previous, ratios)?;
    lift(&mut weights, alpha);
    Ok(weights)
}

/// `previous * exp(by)`, normalized: a step of exponentiated gradient. Computed in log space; 0 stays 0.
pub(crate) fn tilted(previous: &[f64], by: &[f64]) -> Result<Vec<f64>, Refused> {
    check_weights(previous, by.len())?;
    let logits: Vec<f64> = previous
        .iter()
        .zip(by)
        .map(|(weight, by)| weight.ln() + by)
        .collect();
    softmax(&logits)
}

/// `share * weights + (1 - share) / N`: raises every weight to at least `(1 - share) / N`.
pub(crate) fn lift(weights: &mut [f64], share: f64) {
    let floor = (1.0 - share) / weights.len() as f64;
    for weight in weights {
        *weight = share * *weight + floor;
    }
}

fn check(ratios: &[f64], expected: usize) -> Result<(), Refused> {
    if ratios.is_empty() || ratios.len() != expected {
        return Err(Refused::Length {
            expected,
            got: ratios.len(),
        });
    }
    match ratios
        .iter()
        .position(|ratio| !(ratio.is_finite() && *ratio > 0.0))
    {
        Some(domain) => Err(Refused::Ratio {
            domain,
            ratio: ratios[domain],
        }),
        None => Ok(()),
    }
}

/// Checks previous weights: one for each of `expected` domains, finite and not negative.
pub(crate) fn check_weights(weights: &[f64], expected: usize) -> Result<(), Refused> {
    if weights.len() != expected {
        return Err(Refused::Length {
            expected,
            got: weights.len(),
        });
    }
    match weights
        .iter()
        .position(|weight| !(weight.is_finite() && *weight >= 0.0))
    {
        Some(domain) => Err(Refused::Previous {
            domain,
            weight: weights[domain],
        }),
        None => Ok(()),
    }
}

pub(crate) fn softmax(logits: &[f64]) -> Result<Vec<f64>, Refused> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return Err(Refused::NoMass);
    }
    let powers: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    Ok(powers.into_iter().map(|power| power / sum).collect())
}
