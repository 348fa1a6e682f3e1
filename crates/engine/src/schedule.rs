//! The learning rate of each step: linear warm-up, then cosine decay to the end value.

/// Linear warm-up from 0 to `peak` over `warmup_steps`, then a cosine from `peak` to `end` at `total_steps`.
///
/// It is a pure function of the step, so a resumed run needs no state for it. Steps count from 1: the first step
/// already trains (at `peak / warmup_steps`), and the last one runs at `end`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
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
        let span = self.total_steps.saturating_sub(self.warmup_steps);
        if span == 0 {
            return self.peak;
        }
        let progress = ((step - self.warmup_steps) as f64 / span as f64).min(1.0);
        self.end + (self.peak - self.end) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper's schedule: 0 to 3e-5 in 1,000 steps, then cosine to 3e-6 at step 30,000.
    const PAPER: Schedule = Schedule {
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
}
