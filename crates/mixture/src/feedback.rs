//! The measurements that a policy gets at the end of an interval.

use std::ops::Div;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    Refused,
    equations::{check, combined},
};

/// What a policy needs to know at the end of an interval. DDK measures nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: its mixture does not depend on the models.
    Nothing,
    /// Both models' perplexities on the validation documents.
    Perplexities,
    /// The student's loss on each domain's sequences in the interval.
    Losses,
    /// The excess of the student's loss over the teacher's on those sequences, with each prediction clipped at 0.
    Excess,
}

/// The measurements of an interval.
#[derive(Debug, Clone, Copy)]
pub struct Feedback<'a> {
    /// Perplexities after the interval's last step, if they were measured.
    pub perplexities: Option<&'a Perplexities>,
    /// Sums over the sequences that were trained on.
    pub training: &'a TrainingSums,
    /// Share of the learning rate's decay that is left when the next interval begins: 1 until the warm-up has ended,
    /// 0 at the schedule's end.
    pub decay_left: f64,
}

impl Feedback<'_> {
    /// Returns the perplexity ratios, for a policy that requires them.
    pub(crate) fn ratios(&self) -> Result<Vec<f64>, Refused> {
        let perplexities = self.perplexities.ok_or(Refused::NotMeasured)?;
        perplexities.checked_ratios()
    }
}

/// Perplexities of both models on every domain's validation documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Perplexities {
    /// The student's.
    #[serde(deserialize_with = "numbers_or_null")]
    pub student: Vec<f64>,
    /// The teacher's.
    #[serde(deserialize_with = "numbers_or_null")]
    pub teacher: Vec<f64>,
}

/// ln(student's perplexity / teacher's), nats per token: 0 if the student has caught up.
pub fn gap(student: f64, teacher: f64) -> f64 {
    (student / teacher).ln()
}

/// Reads numbers from JSON, which has none that are not finite: such a value is written as `null` and read back as NaN.
///
/// # Errors
/// If it is not a list of numbers and `null`.
pub fn numbers_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let numbers = Vec::<Option<f64>>::deserialize(deserializer)?.into_iter();
    Ok(numbers.map(|number| number.unwrap_or(f64::NAN)).collect())
}

/// No working model is this bad on text, whatever its vocabulary. A larger value means that something is broken.
const ABSURD: f64 = 1e12;

impl Perplexities {
    /// Student's over teacher's perplexity, by domain: 1 if the student has caught up.
    pub fn ratios(&self) -> Vec<f64> {
        combined(&self.student, &self.teacher, Div::div)
    }

    /// The gap of each domain.
    pub fn gaps(&self) -> Vec<f64> {
        combined(&self.student, &self.teacher, gap)
    }

    /// Returns the ratios after checking that both models have positive finite perplexities on the same domains.
    /// Without the check, two infinite or two negative perplexities could pass for a ratio.
    pub(crate) fn checked_ratios(&self) -> Result<Vec<f64>, Refused> {
        let check = |what, perplexities: &[f64], expected| {
            let fault = "no perplexity of a working model";
            let is_valid = |value| value > 0.0 && value < ABSURD;
            check(what, fault, perplexities, expected, is_valid)
        };
        check("student's perplexity", &self.student, self.teacher.len())?;
        check("teacher's perplexity", &self.teacher, self.student.len())?;
        Ok(self.ratios())
    }
}

/// Sums over an interval's updates, by domain.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingSums {
    /// Cross-entropy, nats.
    #[serde(deserialize_with = "numbers_or_null")]
    ce: Vec<f64>,
    /// Excess over the teacher's cross-entropy, with each prediction clipped at 0; 0 if it is not measured.
    #[serde(deserialize_with = "numbers_or_null")]
    excess: Vec<f64>,
    /// Number of predictions.
    predictions: Vec<u64>,
}

impl TrainingSums {
    /// Empty sums over `domains` domains.
    pub fn new(domains: usize) -> Self {
        Self {
            ce: vec![0.0; domains],
            excess: vec![0.0; domains],
            predictions: vec![0; domains],
        }
    }

    /// Adds a sequence of `domain`.
    pub fn add_row(&mut self, domain: usize, ce: f64, excess: f64, predictions: u64) {
        self.ce[domain] += ce;
        self.excess[domain] += excess;
        self.predictions[domain] += predictions;
    }

    /// Adds all of `other`. If the number of domains differs, the sums first restart at 0.
    pub fn add(&mut self, other: &Self) {
        let domains = other.predictions.len();
        if self.predictions.len() != domains {
            *self = Self::new(domains);
        }
        for domain in 0..domains {
            let (ce, excess) = (other.ce[domain], other.excess[domain]);
            self.add_row(domain, ce, excess, other.predictions[domain]);
        }
    }

    /// Mean loss per prediction of each domain, in nats; `None` for a domain that was not trained on.
    pub(crate) fn losses(&self) -> Result<Vec<Option<f64>>, Refused> {
        self.means(&self.ce, "loss")
    }

    /// Mean excess per prediction of each domain, in nats.
    pub(crate) fn excesses(&self) -> Result<Vec<Option<f64>>, Refused> {
        self.means(&self.excess, "excess")
    }

    fn means(&self, sums: &[f64], what: &'static str) -> Result<Vec<Option<f64>>, Refused> {
        let sums = sums.iter().zip(&self.predictions).enumerate();
        let mean = |(domain, (sum, &predictions)): (usize, (&f64, &u64))| {
            let mean = sum / predictions as f64;
            match predictions {
                0 => Ok(None),
                _ if (0.0..ABSURD).contains(&mean) => Ok(Some(mean)),
                _ => Err(Refused::loss(what, domain, mean)),
            }
        };
        sums.map(mean).collect()
    }
}
