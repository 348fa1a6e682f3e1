//! Equations 1 and 2 of "DDK: Distilling Domain Knowledge for Efficient Large Language Models" (NeurIPS 2024), and
//! the math that other policies share with them.

/// Why the feedback of an interval yields no new mixture. `mixture.jsonl` records the text as `refused`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Refused {
    /// A value that no working run has: not finite, out of range, or absurdly large.
    #[error("the {what} of domain {domain} is {value}, which is {fault}")]
    Value {
        /// What the value is, such as "perplexity ratio".
        what: &'static str,
        /// Index of the domain, in the order of names.
        domain: usize,
        /// The offending value.
        value: f64,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The policy needs perplexities, but none were measured.
    #[error("no perplexities were measured")]
    NotMeasured,
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

impl Refused {
    /// For a training loss, or its excess over the reference, that no working model has.
    pub(crate) fn loss(what: &'static str, domain: usize, value: f64) -> Self {
        Self::Value {
            what,
            domain,
            value,
            fault: "not a loss of a working model",
        }
    }
}

/// Eq. 1, the domain discrepancy factor: the softmax of the perplexity ratios (student's over teacher's).
///
/// Subtracts the largest ratio first, because `exp` of a ratio overflows for a student trained from scratch.
///
/// # Errors
/// If there is no ratio, or if one is not a positive finite number.
pub fn discrepancy(ratios: &[f64]) -> Result<Vec<f64>, Refused> {
    check_ratios(ratios, ratios.len())?;
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
    check_ratios(ratios, previous.len())?;
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
    softmax(&combined(previous, by, |weight, by| weight.ln() + by))
}

/// `share * weights + (1 - share) / N`: raises every weight to at least `(1 - share) / N`.
pub(crate) fn lift(weights: &mut [f64], share: f64) {
    let floor = (1.0 - share) / weights.len() as f64;
    for weight in weights {
        *weight = share * *weight + floor;
    }
}

fn check_ratios(ratios: &[f64], expected: usize) -> Result<(), Refused> {
    let fault = "not a positive finite number";
    check("perplexity ratio", fault, ratios, expected, |ratio| {
        ratio.is_finite() && ratio > 0.0
    })
}

/// Checks previous weights: one for each of `expected` domains, finite and not negative.
pub(crate) fn check_weights(weights: &[f64], expected: usize) -> Result<(), Refused> {
    let fault = "not a finite number of at least 0";
    check("previous weight", fault, weights, expected, |weight| {
        weight.is_finite() && weight >= 0.0
    })
}

/// Checks that there is a value for each of `expected` domains, and that each is valid. `fault` says what is wrong
/// with one that is not.
pub(crate) fn check(
    what: &'static str,
    fault: &'static str,
    values: &[f64],
    expected: usize,
    is_valid: impl Fn(f64) -> bool,
) -> Result<(), Refused> {
    let got = values.len();
    if got == 0 || got != expected {
        return Err(Refused::Length { expected, got });
    }
    match values.iter().position(|&value| !is_valid(value)) {
        None => Ok(()),
        Some(domain) => Err(Refused::Value {
            what,
            domain,
            value: values[domain],
            fault,
        }),
    }
}

/// Combines two values of each domain into one.
pub(crate) fn combined(a: &[f64], b: &[f64], by: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    let both = a.iter().zip(b);
    both.map(|(a, b)| by(*a, *b)).collect()
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
