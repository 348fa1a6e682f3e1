//! The scalars of all steps, averaged into a bounded number of points.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use strum::{Display, VariantArray};

use super::part::finite;
use crate::records::StepRecord;

/// Maximum number of points.
const POINTS: usize = 1024;

/// A number recorded for each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[derive(Display, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Scalar {
    /// `ce_loss + gamma * kd_loss`, with TED `+ layer_weight * layer_loss`; nats per prediction.
    Loss,
    /// Cross-entropy, nats per prediction.
    CeLoss,
    /// Divergence from the teacher, nats per prediction.
    KdLoss,
    /// TED: distance between filtered layers.
    LayerLoss,
    /// Global gradient norm before clipping.
    GradNorm,
    /// Learning rate of the update.
    LearningRate,
    /// Tokens divided by the seconds of the step's phases.
    TokensPerSecond,
}

impl Scalar {
    /// Returns its value in a step, and the weight of that value in a mean.
    fn of(self, line: &StepRecord) -> (f64, f64) {
        match self {
            Self::Loss => (line.loss, 1.0),
            Self::CeLoss => (line.ce_loss, 1.0),
            Self::KdLoss => (line.kd_loss, 1.0),
            Self::LayerLoss => (line.layer_loss.unwrap_or(f64::NAN), 1.0),
            Self::GradNorm => (line.grad_norm, 1.0),
            Self::LearningRate => (line.learning_rate, 1.0),
            Self::TokensPerSecond => {
                let seconds: f64 = line.seconds.values().sum();
                (line.tokens as f64 / seconds, seconds)
            }
        }
    }
}

/// A mean over finite values. The loss of a skipped step, for example, may not be finite.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64, weight: f64) {
        if value.is_finite() {
            self.sum += value * weight;
            self.weight += weight;
        }
    }

    fn get(self) -> Option<f64> {
        finite(self.sum / self.weight)
    }

    pub(super) fn over(values: impl Iterator<Item = f64>) -> Option<f64> {
        let mut mean = Self::default();
        values.for_each(|value| mean.add(value, 1.0));
        mean.get()
    }
}

/// The means of up to `stride` steps.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    step: u64,
    steps: u64,
    means: [Mean; Scalar::VARIANTS.len()],
}

impl Point {
    fn add(&mut self, line: &StepRecord) {
        (self.step, self.steps) = (line.step, self.steps + 1);
        for (mean, scalar) in self.means.iter_mut().zip(Scalar::VARIANTS) {
            let (value, weight) = scalar.of(line);
            mean.add(value, weight);
        }
    }

    fn join(mut self, later: &Self) -> Self {
        (self.step, self.steps) = (later.step, self.steps + later.steps);
        for (mean, later) in self.means.iter_mut().zip(later.means) {
            mean.sum += later.sum;
            mean.weight += later.weight;
        }
        self
    }
}

/// Returns the means of some steps, for the scalars that they have.
pub(super) fn means<'a>(lines: impl IntoIterator<Item = &'a StepRecord>) -> BTreeMap<Scalar, f64> {
    let mut point = Point::default();
    lines.into_iter().for_each(|line| point.add(line));
    let means = Scalar::VARIANTS.iter().zip(point.means);
    means
        .filter_map(|(scalar, mean)| Some((*scalar, mean.get()?)))
        .collect()
}

/// The steps of a run. Each point is the mean of `stride` consecutive steps. When there are too many points, pairs are
/// merged and the stride doubles.
#[derive(Debug, Default)]
pub(super) struct ScalarSeries {
    /// Number of times that the stride, 1 at first, has doubled.
    doublings: u32,
    points: Vec<Point>,
}

/// Steps as columns of equal length: `/api/steps`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// Number of steps in a full point.
    pub stride: u64,
    /// The last step of each point.
    pub step: Vec<u64>,
    /// Means of each point by scalar; `null` if nothing in it is finite. A scalar that no step has is absent.
    #[serde(flatten)]
    pub scalars: BTreeMap<Scalar, Vec<Option<f64>>>,
}

impl ScalarSeries {
    pub(super) fn push(&mut self, line: &StepRecord) {
        let is_full = |point: &Point| point.steps >= self.stride();
        if self.points.last().is_none_or(is_full) {
            if self.points.len() >= POINTS {
                self.halve();
            }
            self.points.push(Point::default());
        }
        if let Some(point) = self.points.last_mut() {
            point.add(line);
        }
    }

    fn halve(&mut self) {
        let pairs = self.points.chunks(2);
        let joined = pairs.filter_map(|pair| pair.iter().copied().reduce(|a, b| a.join(&b)));
        self.points = joined.collect();
        self.doublings += 1;
    }

    fn stride(&self) -> u64 {
        1 << self.doublings
    }

    pub(super) fn columns(&self) -> Steps {
        let column = |(index, scalar): (usize, &Scalar)| {
            let means = self.points.iter().map(|point| point.means[index].get());
            (*scalar, means.collect::<Vec<_>>())
        };
        let columns = Scalar::VARIANTS.iter().enumerate().map(column);
        Steps {
            stride: self.stride(),
            step: self.points.iter().map(|point| point.step).collect(),
            scalars: columns
                .filter(|(_, means)| means.iter().any(Option::is_some))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PhaseSeconds, StepPhase};

    fn line(step: u64, ce_loss: f64) -> StepRecord {
        StepRecord {
            step,
            loss: ce_loss,
            ce_loss,
            kd_loss: 0.0,
            gamma: 0.2,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            tokens: 100,
            seconds: PhaseSeconds::from([(StepPhase::Forward, 0.5)]),
            ..StepRecord::default()
        }
    }

    #[test]
    fn a_million_steps_are_a_thousand_points_with_the_right_means() {
        let mut series = ScalarSeries::default();
        let steps = 1_000_000;
        for step in 1..=steps {
            series.push(&line(step, step as f64));
        }
        let all = series.columns();
        assert_eq!(all.stride, 1024);
        assert!(all.step.len() <= POINTS && all.step.len() > POINTS / 2);
        assert_eq!(all.step.last(), Some(&steps));
        // The means of steps 1 to 1024 and of the next 1024.
        assert_eq!(
            all.scalars[&Scalar::CeLoss][..2],
            [Some(512.5), Some(1536.5)]
        );
        assert_eq!(all.scalars[&Scalar::TokensPerSecond][0], Some(200.0));
        assert!(!all.scalars.contains_key(&Scalar::LayerLoss));
    }

    #[test]
    fn what_is_not_finite_is_left_out_of_a_mean() {
        let mut series = ScalarSeries::default();
        series.push(&line(1, f64::NAN));
        assert!(!series.columns().scalars.contains_key(&Scalar::CeLoss));
        series.push(&line(2, 4.0));
        assert_eq!(series.columns().scalars[&Scalar::CeLoss], [None, Some(4.0)]);
        for step in 3..=POINTS as u64 + 1 {
            series.push(&line(step, 4.0));
        }
        assert_eq!(series.columns().scalars[&Scalar::CeLoss][0], Some(4.0));
    }

    #[test]
    fn columns_are_flat_in_json_and_read_back() {
        let mut series = ScalarSeries::default();
        series.push(&line(1, 2.0));
        let columns = series.columns();
        let value = serde_json::to_value(&columns).unwrap();
        assert_eq!(value["grad_norm"][0], 1.0);
        assert_eq!(serde_json::from_value::<Steps>(value).unwrap(), columns);
    }
}
