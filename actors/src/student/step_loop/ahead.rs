//! What the student's books hold where mixtures lag: the evaluation that the interval in hand began with.

use super::{StepLoop, took};
use crate::{LoopState, PortError, RunPlan, Student, interval::Evaluation, teacher::EvaluatedCopy};

/// The evaluation that the interval in hand began with, where mixtures lag: the next one follows from it.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ahead {
    /// Mixtures do not lag, or nothing has been measured yet.
    None,
    /// A copy of the student is being evaluated.
    Awaited,
    /// It is known; empty where none was due.
    Known(Evaluation),
}

impl Ahead {
    /// At a run's start, or when it resumes.
    pub(super) fn new(plan: &RunPlan, state: &LoopState) -> Self {
        let ahead = state.lagged_evaluation.clone();
        ahead
            .filter(|_| plan.lag > 0)
            .map_or(Self::None, Self::Known)
    }

    /// As a checkpoint holds it; none where it has not come yet.
    pub(super) fn known(&self) -> Option<Evaluation> {
        match self {
            Self::Known(evaluated) => Some(evaluated.clone()),
            Self::None | Self::Awaited => None,
        }
    }
}

impl<S: Student> StepLoop<'_, S> {
    /// Whether the next mixture follows from an evaluation made earlier, so that nobody has to wait for the
    /// one that is due now.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead != Ahead::None
    }

    /// Whether the evaluation that this interval began with has not come yet.
    pub(crate) fn awaits_evaluation(&self) -> bool {
        self.ahead == Ahead::Awaited
    }

    /// Whether the state of the last step is whole: a checkpoint holds what the next mixture follows from.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_ahead() || self.state.lagged_evaluation.is_some()
    }

    /// Remembers what was measured, or that nothing was, after the last step.
    pub(crate) fn remember(&mut self, perplexities: Option<&[f64]>) {
        if self.plan.lag > 0 {
            let evaluated = Evaluation::new(self.step(), perplexities.unwrap_or_default());
            self.ahead = Ahead::Known(evaluated);
        }
    }

    /// A copy to evaluate elsewhere.
    pub(crate) fn copy(&mut self) -> Result<S::Weights, PortError> {
        self.newly_busy();
        let weights = self.student.weights()?;
        self.totals.evaluation_seconds += self.newly_busy();
        self.count_evaluation(self.plan.evaluation_flops);
        self.ahead = Ahead::Awaited;
        Ok(weights)
    }

    /// Takes down what the copy's evaluation came to.
    pub(crate) fn evaluated(&mut self, copy: EvaluatedCopy) {
        self.totals.evaluation_seconds += copy.busy_seconds;
        took("evaluation", copy.busy_seconds);
        // Its checkpoint was saved when it was copied.
        self.measured(copy.step, &copy.perplexities);
        let evaluated = Evaluation::new(copy.step, &copy.perplexities);
        // Before the interval's first step the state is that of the interval before.
        if self.step() > copy.step {
            self.state.lagged_evaluation = Some(evaluated.clone());
        }
        self.ahead = Ahead::Known(evaluated);
    }
}
