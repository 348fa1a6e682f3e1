//! The learning rate of each step: linear warm-up, then one of four shapes down to the end value.

use std::f64::consts::PI;

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Half a cosine from the peak to the end value.
    Cosine,
    /// A straight line from the peak to the end value.
    Linear,
    /// The peak for the rest of the run. The end value has no effect.
    Constant,
    /// Warm-up, stable, decay: the peak, then a decay to the end value over the last steps.
    Wsd {
        /// How long the decay takes.
        steps: DecaySteps,
        /// How it falls.
        form: DecayForm,
    },
}

/// The length of the decay at the end of [`Shape::Wsd`]. A decay that would begin within the warm-up begins at its
/// end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DecaySteps {
    /// A number of steps.
    Number(u64),
    /// A fraction of the whole schedule, rounded to the nearest step, at least one.
    Fraction(f64),
}

/// How the decay of [`Shape::Wsd`] falls from the peak to the end value, as `get_wsd_schedule` of transformers names
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecayForm {
    /// A straight line.
    Linear,
    /// Half a cosine.
    Cosine,
    /// One minus the square root of the progress: fast at first, then slower.
    OneMinusSqrt,
}

/// Linear warm-up from 0 to `peak` over `warmup_steps`, then `shape` from `peak` to `end` at `total_steps`.
///
/// It is a pure function of the step, so a resumed run needs no state for it. Steps count from 1: the first step
/// already trains (at `peak / warmup_steps`), and the last one runs at `end` unless the shape is constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// How the learning rate falls after the warm-up.
    pub shape: Shape,
    /// The highest learning rate, reached at the end of the warm-up.
    pub peak: f64,
    /// The learning rate of step `total_steps` and of any step after it.
    pub end: f64,
    /// Steps of the linear warm-up; 0 starts at `peak`.
    pub warmup_steps: u64,
    /// The step at which `end` is reached.
    pub total_steps: u64,
}

impl Schedule {
    /// The learning rate with which step `step` (from 1) updates the weights.
    pub fn learning_rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        match self.decay(step) {
            Some(left) if self.shape != Shape::Constant => self.end + (self.peak - self.end) * left,
            _ => self.peak,
        }
    }

    /// The share of the decay that is left at a step: 1 until the decay begins, 0 at `total_steps`. It depends on no
    /// learning rate. For a constant rate, it falls in a straight line after the warm-up.
    pub fn decay_left(&self, step: u64) -> f64 {
        self.decay(step).unwrap_or(1.0)
    }

    /// The share of the decay that is left, once the decay has begun.
    fn decay(&self, step: u64) -> Option<f64> {
        let start = self.decay_start();
        let span = self.total_steps.saturating_sub(start);
        if span == 0 || step < start {
            return None;
        }
        let progress = ((step - start) as f64 / span as f64).min(1.0);
        Some(match self.shape {
            Shape::Cosine
            | Shape::Wsd {
                form: DecayForm::Cosine,
                ..
            } => 0.5 * (1.0 + (PI * progress).cos()),
            Shape::Linear
            | Shape::Constant
            | Shape::Wsd {
                form: DecayForm::Linear,
                ..
            } => 1.0 - progress,
            Shape::Wsd {
                form: DecayForm::OneMinusSqrt,
                ..
            } => 1.0 - progress.sqrt(),
        })
    }

    /// The last step at the peak: the end of the warm-up, or of the stable part.
    pub fn decay_start(&self) -> u64 {
        let Shape::Wsd { steps, .. } = self.shape else {
            return self.warmup_steps;
        };
        let decay = match steps {
            DecaySteps::Number(steps) => steps,
            DecaySteps::Fraction(fraction) => {
                ((fraction * self.total_steps as f64).round() as u64).max(1)
            }
        };
        self.total_steps
            .saturating_sub(decay)
            .max(self.warmup_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_decay_that_is_left_is_that_of_the_learning_rate_whatever_the_rates_are() {
        for step in [1, 500, 1_000, 9_000, 29_999, 30_000, 40_000] {
            let left = PAPER.decay_left(step);
            let of_rates = (PAPER.learning_rate(step) - PAPER.end) / (PAPER.peak - PAPER.end);
            let expected = if step < 1_000 { 1.0 } else { of_rates };
            assert!((left - expected).abs() < 1e-9, "step {step}: {left}");
            let level = Schedule {
                end: PAPER.peak,
                ..PAPER
            };
            assert_eq!(level.decay_left(step), left);
        }
        let constant = Schedule {
            shape: Shape::Constant,
            ..PAPER
        };
        assert_eq!(constant.decay_left(15_500), 0.5);
        assert_eq!(constant.learning_rate(15_500), PAPER.peak);
    }

    /// The paper's schedule: 0 to 3e-5 in 1,000 steps, then cosine to 3e-6 at step 30,000.
    const PAPER: Schedule = Schedule {
        shape: Shape::Cosine,
        peak: 3e-5,
        end: 3e-6,
        warmup_steps: 1_000,
        total_steps: 30_000,
    };

    #[test]
    fn the_papers_schedule_has_its_known_points() {
        for (step, expected) in [
            (1, 3e-8),
            (500, 1.5e-5),
            (1_000, 3e-5),
            (15_500, 1.65e-5),
            (30_000, 3e-6),
            (40_000, 3e-6),
        ] {
            let rate = PAPER.learning_rate(step);
            assert!(
                (rate - expected).abs() < 1e-15,
                "step {step}: {rate} instead of {expected}"
            );
        }
    }

    #[test]
    fn warm_up_can_be_absent_or_fill_the_run() {
        let none = Schedule {
            warmup_steps: 0,
            ..PAPER
        };
        assert!(none.learning_rate(1) < 3e-5 && none.learning_rate(1) > 2.99e-5);
        let only = Schedule {
            warmup_steps: 30_000,
            ..PAPER
        };
        assert_eq!(only.learning_rate(30_000), 3e-5);
    }

    #[test]
    fn a_decay_that_does_not_fit_begins_after_the_warm_up() {
        let wsd = |steps| Schedule {
            shape: Shape::Wsd {
                steps,
                form: DecayForm::Linear,
            },
            ..PAPER
        };
        for (steps, start) in [
            (DecaySteps::Number(6_000), 24_000),
            (DecaySteps::Fraction(0.2), 24_000),
            (DecaySteps::Fraction(1.0), 1_000),
            (DecaySteps::Number(90_000), 1_000),
            // Less than a step is one step.
            (DecaySteps::Fraction(1e-9), 29_999),
        ] {
            assert_eq!(wsd(steps).decay_start(), start, "{steps:?}");
        }
        let late = wsd(DecaySteps::Number(90_000));
        let linear = Schedule {
            shape: Shape::Linear,
            ..PAPER
        };
        for step in [1, 999, 1_000, 1_001, 20_000, 30_000, 50_000] {
            assert_eq!(late.learning_rate(step), linear.learning_rate(step));
        }
    }
}
