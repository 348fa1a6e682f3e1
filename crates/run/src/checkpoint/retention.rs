//! Decides which checkpoints to keep.

use serde::{Deserialize, Serialize};

/// Which checkpoints to keep. The newest, which was just saved, is always kept.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Retention {
    /// How many of the newest checkpoints to keep, at least one. Also how many set-aside checkpoints to keep.
    pub last: usize,
    /// Never remove a checkpoint whose step is a multiple of this.
    pub every: Option<u64>,
    /// Whether to keep the best of the evaluated checkpoints.
    pub best: bool,
}

/// The student's mean gap after a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The step.
    pub step: u64,
    /// Mean over the domains of ln(student's perplexity / teacher's); finite.
    pub gap: f64,
}

impl Measured {
    /// Returns the smallest gap among the steps that have a checkpoint; if several are equal, the first.
    pub fn best(measured: &[Self], is_there: impl Fn(u64) -> bool) -> Option<Self> {
        let there = measured.iter().filter(|one| is_there(one.step));
        there.min_by(|a, b| a.gap.total_cmp(&b.gap)).copied()
    }
}

impl Retention {
    /// Keeps only the newest checkpoints.
    pub fn last(last: usize) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    /// The steps to remove. `steps` are those of all checkpoints, in order.
    pub(super) fn surplus(&self, steps: &[u64], measured: &[Measured]) -> Vec<u64> {
        let best = self
            .best
            .then(|| Measured::best(measured, |step| steps.contains(&step)))
            .flatten();
        let older = &steps[..steps.len().saturating_sub(self.last.max(1))];
        older
            .iter()
            .copied()
            .filter(|step| self.every.is_none_or(|every| !step.is_multiple_of(every)))
            .filter(|step| best.is_none_or(|best| best.step != *step))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_the_multiples_and_the_best_that_is_there_stay() {
        let steps = [10, 20, 30, 40, 50];
        let measured = [(10, 1.5), (20, 1.2), (35, 1.0), (40, 1.2)];
        let measured = measured.map(|(step, gap)| Measured { step, gap });
        let surplus =
            |last, every, best| Retention { last, every, best }.surplus(&steps, &measured);
        assert_eq!(surplus(2, None, false), [10, 20, 30]);
        assert_eq!(
            surplus(0, None, false),
            [10, 20, 30, 40],
            "one always stays"
        );
        assert_eq!(surplus(9, None, false), Vec::<u64>::new());
        assert_eq!(surplus(1, Some(20), false), [10, 30]);
        // Step 35 has no checkpoint. Of equal gaps, the first is the best.
        assert_eq!(surplus(1, None, true), [10, 30, 40]);
        assert_eq!(Measured::best(&measured, |_| false), None);
    }
}
