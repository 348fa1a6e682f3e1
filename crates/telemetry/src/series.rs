//! Steps in a bounded number of points, however many there are.

use ddk_run::records::StepLine;

use crate::api::{Steps, finite};

/// Points at the most.
const POINTS: usize = 1024;

/// The steps of a run: means of `stride` neighbours each; where there are too many, pairs are joined and the
/// stride doubles.
#[derive(Debug)]
pub(crate) struct Series {
    stride: u64,
    points: Vec<Point>,
    /// Changes where points that were given out no longer hold.
    generation: u64,
}

/// Up to `stride` steps.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    step: u64,
    steps: u64,
    tokens: f64,
    seconds: f64,
    learning_rate: f64,
    gradient_norm: Mean,
    loss: Mean,
    ce: Mean,
    kl: Mean,
}

/// A mean over what is finite: the loss of a step that was passed over is not.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub(crate) fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.sum += value;
            self.count += 1;
        }
    }

    fn join(self, other: Self) -> Self {
        Self {
            sum: self.sum + other.sum,
            count: self.count + other.count,
        }
    }

    pub(crate) fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// How far somebody has been told of a series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    generation: u64,
    points: usize,
    step: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            stride: 1,
            points: Vec::new(),
            generation: 1,
        }
    }
}

impl Series {
    /// Forgets everything: the file was cut back.
    pub(crate) fn clear(&mut self) {
        *self = Self {
            generation: self.generation + 1,
            ..Self::default()
        };
    }

    pub(crate) fn push(&mut self, line: &StepLine) {
        let is_full = |point: &Point| point.steps >= self.stride;
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
        self.points = pairs
            .map(|pair| match pair {
                [first, second] => first.join(second),
                [first, ..] => *first,
                [] => Point::default(),
            })
            .collect();
        self.stride *= 2;
        self.generation += 1;
    }

    /// All of it.
    pub(crate) fn all(&self) -> Steps {
        self.from(0)
    }

    /// What is new since `told`, which is brought up to date; the last point that was told may have grown.
    pub(crate) fn news(&self, told: &mut Told) -> Option<Steps> {
        let now = Told {
            generation: self.generation,
            points: self.points.len(),
            step: self.points.last().map_or(0, |point| point.step),
        };
        if *told == now {
            return None;
        }
        let from = if told.generation == self.generation {
            told.points.saturating_sub(1)
        } else {
            0
        };
        *told = now;
        Some(self.from(from))
    }

    fn from(&self, from: usize) -> Steps {
        let mut steps = Steps {
            from,
            stride: self.stride,
            ..Steps::default()
        };
        for point in self.points.iter().skip(from) {
            steps.step.push(point.step);
            steps.loss.push(point.loss.get());
            steps.ce.push(point.ce.get());
            steps.kl.push(point.kl.get());
            steps.gradient_norm.push(point.gradient_norm.get());
            steps.learning_rate.push(finite(point.learning_rate));
            let rate = point.tokens / point.seconds;
            steps.tokens_per_second.push(finite(rate));
        }
        steps
    }
}

impl Point {
    fn add(&mut self, line: &StepLine) {
        self.step = line.step;
        self.steps += 1;
        self.tokens += line.tokens as f64;
        self.seconds += line.seconds.values().sum::<f64>();
        self.learning_rate = line.learning_rate;
        self.gradient_norm.add(line.grad_norm);
        self.loss.add(line.loss);
        self.ce.add(line.ce);
        self.kl.add(line.kl);
    }

    fn join(&self, later: &Self) -> Self {
        Self {
            step: later.step,
            steps: self.steps + later.steps,
            tokens: self.tokens + later.tokens,
            seconds: self.seconds + later.seconds,
            learning_rate: later.learning_rate,
            gradient_norm: self.gradient_norm.join(later.gradient_norm),
            loss: self.loss.join(later.loss),
            ce: self.ce.join(later.ce),
            kl: self.kl.join(later.kl),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ddk_run::{PhaseSeconds, StepPhase};

    fn line(step: u64, ce: f64) -> StepLine {
        StepLine {
            step,
            loss: ce,
            ce,
            kl: 0.0,
            gamma: 0.2,
            layer: None,
            layer_weight: None,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            tokens: 100,
            mixture_version: 0,
            skipped: None,
            seconds: PhaseSeconds::from([(StepPhase::Forward, 0.5)]),
        }
    }

    #[test]
    fn a_million_steps_are_a_thousand_points_with_the_right_means() {
        let mut series = Series::default();
        let steps = 1_000_000;
        for step in 1..=steps {
            series.push(&line(step, step as f64));
        }
        let all = series.all();
        assert_eq!((all.stride, all.from), (1024, 0));
        assert!(all.step.len() <= POINTS && all.step.len() > POINTS / 2);
        assert_eq!(all.step.last(), Some(&steps));
        // The mean of the steps 1 to 1024, and of the 1024 after these.
        assert_eq!(all.ce[..2], [Some(512.5), Some(1536.5)]);
        assert_eq!(all.tokens_per_second[0], Some(200.0));
    }

    #[test]
    fn what_is_not_finite_is_left_out_of_a_mean() {
        let mut series = Series::default();
        series.push(&line(1, f64::NAN));
        assert_eq!(series.all().ce, [None]);
        for step in 2..=POINTS as u64 + 1 {
            series.push(&line(step, 4.0));
        }
        assert_eq!(series.all().ce[0], Some(4.0));
    }

    #[test]
    fn who_was_told_is_told_only_what_is_new() {
        let mut series = Series::default();
        let mut told = Told::default();
        series.push(&line(1, 1.0));
        series.push(&line(2, 2.0));
        let news = series.news(&mut told).unwrap();
        assert_eq!((news.from, news.step), (0, vec![1, 2]));
        assert_eq!(series.news(&mut told), None);
        series.push(&line(3, 3.0));
        let news = series.news(&mut told).unwrap();
        assert_eq!((news.from, news.step), (1, vec![2, 3]));
        series.clear();
        series.push(&line(1, 1.0));
        let news = series.news(&mut told).unwrap();
        assert_eq!((news.from, news.step), (0, vec![1]));
    }
}
