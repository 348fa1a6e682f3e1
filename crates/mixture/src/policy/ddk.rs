//! The paper's policy: discrepancy-guided weights with a smooth update.

use serde::{Deserialize, Serialize};

use crate::{
    Decision, Feedback, InitialMixture, Perplexities, Refused,
    decision::shares_of_domains,
    equations::{check_weights, discrepancy, smooth_update},
};

/// Equations 1 and 2: r_0 is the discrepancy at the start. Each later interval uses the weights
/// `r_{t+1} = alpha * normalized(r_t * exp(ratio)) + (1 - alpha) / N`. A temperature divides the ratios; the paper's
/// is 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ddk {
    pub(super) alpha: f64,
    pub(super) update_every: u64,
    first: InitialMixture,
    #[serde(default = "of_the_paper")]
    temperature: f64,
    /// r_t of Eq. 2; `None` before the first interval.
    factor: Option<Vec<f64>>,
}

impl Ddk {
    /// `alpha` ranges from 0 (equal weights) to 1 (no floor); `update_every` is K, in steps.
    pub fn new(alpha: f64, update_every: u64, first: InitialMixture) -> Self {
        Self {
            alpha,
            update_every,
            first,
            temperature: of_the_paper(),
            factor: None,
        }
    }

    /// Divides the ratios by `temperature`: above 1, large ratios differ less.
    #[must_use]
    pub fn with_temperature(self, temperature: f64) -> Self {
        Self {
            temperature,
            ..self
        }
    }

    /// Continues after an interval with the weights `factor`.
    pub fn going_on(alpha: f64, update_every: u64, factor: Vec<f64>) -> Self {
        Self {
            factor: Some(factor),
            ..Self::new(alpha, update_every, InitialMixture::Natural)
        }
    }

    pub(crate) fn of_domains(&self, kept: &[Option<usize>]) -> Self {
        let factor = self.factor.as_ref();
        Self {
            factor: factor.map(|factor| shares_of_domains(factor, kept)),
            ..self.clone()
        }
    }

    pub(super) fn first(
        &mut self,
        natural: &[f64],
        at_start: &Perplexities,
    ) -> Result<Decision, Refused> {
        let ratio = at_start.checked_ratios()?;
        check_weights(natural, ratio.len())?;
        let factor = discrepancy(&self.cooled(ratio))?;
        let weights = match self.first {
            InitialMixture::Discrepancy => factor.clone(),
            other => other.weights(natural, at_start)?,
        };
        self.factor = Some(factor.clone());
        Ok(Decision {
            discrepancy: Some(factor),
            ..Decision::of(weights)
        })
    }

    pub(super) fn next(&mut self, feedback: &Feedback<'_>) -> Result<Decision, Refused> {
        let ratio = self.cooled(feedback.ratios()?);
        let previous = match &self.factor {
            Some(factor) => factor.clone(),
            None => discrepancy(&ratio)?,
        };
        let weights = smooth_update(&previous, &ratio, self.alpha)?;
        self.factor = Some(weights.clone());
        Ok(Decision {
            previous: Some(previous),
            ..Decision::of(weights)
        })
    }

    fn cooled(&self, mut ratios: Vec<f64>) -> Vec<f64> {
        for ratio in &mut ratios {
            *ratio /= self.temperature;
        }
        ratios
    }
}

fn of_the_paper() -> f64 {
    1.0
}
