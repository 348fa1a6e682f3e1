//! Which checkpoints stay.

use std::path::{Path, PathBuf};

/// Which checkpoints stay. The newest, just written whole, always does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest, at least one; and so many of those that were set aside.
    pub last: usize,
    /// Those of steps that are multiples of this, for ever.
    pub every: Option<u64>,
    /// The one at which the mean ratio to the teacher was the smallest, by the lines of this `mixture.jsonl`; and the last one
    /// that began an interval and is not measured yet, which mixtures that lag are.
    pub best_by: Option<PathBuf>,
}

impl Retention {
    /// Only the newest.
    pub fn last(last: usize) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    /// The steps to remove, of all there are in their order.
    pub(super) fn surplus(&self, steps: &[u64]) -> Vec<u64> {
        let best = self
            .best_by
            .as_deref()
            .map_or([None; 2], |path| best_steps(path, steps));
        let older = &steps[..steps.len().saturating_sub(self.last.max(1))];
        older
            .iter()
            .copied()
            .filter(|step| self.every.is_none_or(|every| !step.is_multiple_of(every)))
            .filter(|step| !best.contains(&Some(*step)))
            .collect()
    }
}

/// Of `steps` the one whose mean ratio, as it was measured there, is the smallest, and the last one at which an interval began
/// after everything that was measured.
fn best_steps(mixture: &Path, steps: &[u64]) -> [Option<u64>; 2] {
    let folder = mixture.parent().unwrap_or(mixture);
    let Ok((lines, _)) = crate::read::mixtures(folder) else {
        return [None; 2];
    };
    let mean = |line: &crate::records::MixtureLine| {
        line.ratio.values().sum::<f64>() / line.ratio.len().max(1) as f64
    };
    let best = lines
        .iter()
        .filter(|line| steps.contains(&line.evaluated_at_step))
        // What is not finite has no ratio.
        .filter(|line| line.ratio.len() == line.weights.len())
        .min_by(|a, b| mean(a).total_cmp(&mean(b)))
        .map(|line| line.evaluated_at_step);
    let measured = lines.iter().map(|line| line.evaluated_at_step).max();
    let began = lines.iter().map(|line| line.step);
    let unmeasured = began.filter(|step| Some(*step) > measured && steps.contains(step));
    [best, unmeasured.max()]
}
