//! Makes one update from a step's gradients: checks that they are finite, clips them, and applies AdamW at the
//! scheduled learning rate.

use ddk_run::{PhaseSeconds, UpdateStats};
use tch::Tensor;

use crate::{
    EngineError,
    adamw::{AdamW, global_norm},
    options::StudentOptions,
    schedule::Schedule,
};

/// The optimizer of a list of parameters, and whether this step's losses allow an update.
#[derive(Debug)]
pub(crate) struct Updates {
    optimizer: AdamW,
    clip_norm: f64,
    schedule: Schedule,
    /// Whether every loss of this step has been finite so far.
    finite: bool,
}

impl Updates {
    pub(crate) fn new(optimizer: AdamW, options: &StudentOptions) -> Self {
        Self {
            optimizer,
            clip_norm: options.clip_norm,
            schedule: options.schedule,
            finite: true,
        }
    }

    pub(crate) fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Records whether a loss is finite.
    pub(crate) fn see(&mut self, finite: bool) {
        self.finite &= finite;
    }

    /// Sets the schedule's peak and final learning rates.
    pub(crate) fn set_learning_rates(&mut self, peak: f64, end: f64) {
        (self.schedule.peak, self.schedule.end) = (peak, end);
    }

    /// Updates `parameters` as step `step` (from 1). If a loss or gradient is not finite, the update is skipped and
    /// changes neither the parameters nor the moments. A skipped update still counts as a step of the schedule.
    pub(crate) fn make(
        &mut self,
        step: u64,
        parameters: &[(String, Tensor)],
        gradients: &[Tensor],
    ) -> Result<UpdateStats, EngineError> {
        let learning_rate = self.schedule.learning_rate(step);
        // SAFETY: only the backward pass of this thread writes gradients, and it is done.
        let grad_norm = unsafe { global_norm(gradients)? };
        let skipped = if !self.finite {
            Some("the loss is not finite".to_owned())
        } else if !grad_norm.is_finite() {
            Some("the gradient is not finite".to_owned())
        } else {
            None
        };
        if skipped.is_none() {
            let scale = if grad_norm > self.clip_norm {
                self.clip_norm / grad_norm
            } else {
                1.0
            };
            // SAFETY: only the thread of this worker uses the parameters, gradients and moments. Other workers get
            // copies (`Model::copy_parameters`, `Snapshot`).
            unsafe {
                self.optimizer
                    .update(parameters, gradients, learning_rate, scale)?;
            }
        }
        self.finite = true;
        Ok(UpdateStats {
            learning_rate,
            grad_norm,
            skipped,
            seconds: PhaseSeconds::new(),
        })
    }

    /// Makes no update: weights and moments stay as they are, and the schedule continues.
    pub(crate) fn discard(&mut self, step: u64, reason: &str) -> UpdateStats {
        self.finite = true;
        UpdateStats {
            learning_rate: self.schedule.learning_rate(step),
            grad_norm: f64::NAN,
            skipped: Some(reason.to_owned()),
            seconds: PhaseSeconds::new(),
        }
    }
}
