//! The student's bookkeeping when mixtures lag: the evaluation that the current interval began with.

use super::{StepLoop, took};
use crate::{LoopState, PortError, RunPlan, Student, interval::Evaluation, teacher::EvaluatedCopy};

/// The evaluation that the current interval began with if mixtures lag. It decides the next mixture.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ahead {
    /// Mixtures do not lag, or nothing has been measured yet.
    None,
    /// A copy of the student is being evaluated.
    Awaited,
    /// The result is known; empty if no evaluation was due.
    Known(Evaluation),
}

impl Ahead {
    /// For a run that starts or resumes.
    pub(super) fn new(plan: &RunPlan, state: &LoopState) -> Self {
        let ahead = state.lagged_evaluation.clone();
        ahead
            .filter(|_| plan.lag > 0)
            .map_or(Self::None, Self::Known)
    }

    /// The evaluation as a checkpoint stores it; none while it is pending.
    pub(super) fn known(&self) -> Option<Evaluation> {
        match self {
            Self::Known(evaluated) => Some(evaluated.clone()),
            Self::None | Self::Awaited => None,
        }
    }
}

impl<S: Student> StepLoop<'_, S> {
    /// Whether an earlier evaluation decides the next mixture, so that training does not wait for the one due now.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead != Ahead::None
    }

    /// Whether the evaluation that this interval began with is pending.
    pub(crate) fn awaits_evaluation(&self) -> bool {
        self.ahead == Ahead::Awaited
    }

    /// Whether the state of the last step is complete, so that a checkpoint holds what decides the next mixture.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_ahead() || self.state.lagged_evaluation.is_some()
    }

    /// Stores what was measured after the last step, or that nothing was.
    pub(crate) fn remember(&mut self, perplexities: Option<&[f64]>) {
        if self.plan.lag > 0 {
            let evaluated = Evaluation::new(self.step(), perplexities.unwrap_or_default());
            self.ahead = Ahead::Known(evaluated);
        }
    }

    /// A copy of the weights, to evaluate elsewhere.
    pub(crate) fn copy(&mut self) -> Result<S::Weights, PortError> {
        self.newly_busy();
        let weights = self.student.weights()?;
        self.totals.evaluation_seconds += self.newly_busy();
        self.count_evaluation(self.plan.evaluation_flops);
        self.ahead = Ahead::Awaited;
        Ok(weights)
    }

    /// Records the result of a copy's evaluation.
    pub(crate) fn evaluated(&mut self, copy: EvaluatedCopy) {
        self.totals.evaluation_seconds += copy.busy_seconds;
        took("evaluation", copy.busy_seconds);
        // If it needed a checkpoint, that was saved when the copy was made.
        self.measured(copy.step, &copy.perplexities);
        let evaluated = Evaluation::new(copy.step, &copy.perplexities);
        // Before the interval's first step, the state is still that of the previous interval.
        if self.step() > copy.step {
            self.state.lagged_evaluation = Some(evaluated.clone());
        }
        self.ahead = Ahead::Known(evaluated);
    }
}
