//! Makes one update from a step's gradients: checks that they are finite, clips them, and applies AdamW at the
//! scheduled learning rate.

use std::path::Path;

use ddk_run::{PhaseSeconds, UpdateStats};
use tch::Tensor;

use crate::{
    EngineError,
    adamw::{AdamW, global_norm},
    options::StudentOptions,
    schedule::Schedule,
    snapshot::{MOMENTS_FILE, read_moments},
};

/// What trains, with its optimizer, and whether this step's losses allow an update.
#[derive(Debug)]
pub struct Updates {
    /// In the optimizer's order.
    pub(crate) parameters: Vec<(String, Tensor)>,
    pub(crate) optimizer: AdamW,
    clip_norm: f64,
    pub(crate) schedule: Schedule,
    /// Whether every loss of this step has been finite so far.
    finite: bool,
}

impl Updates {
    /// Starts with zero moments, or with those of a checkpoint.
    pub(crate) fn new(
        parameters: Vec<(String, Tensor)>,
        options: &StudentOptions,
        checkpoint: Option<&Path>,
    ) -> Result<Self, EngineError> {
        let mut optimizer = AdamW::new(options.adamw, &parameters)?;
        if let Some(folder) = checkpoint {
            read_moments(&folder.join(MOMENTS_FILE), &mut optimizer, &parameters)?;
        }
        Ok(Self {
            parameters,
            optimizer,
            clip_norm: options.clip_norm,
            schedule: options.schedule,
            finite: true,
        })
    }

    /// Records whether a loss is finite.
    pub(crate) fn see(&mut self, finite: bool) {
        self.finite &= finite;
    }

    /// Sets the gradients that autograd accumulated to 0.
    pub(crate) fn clear_gradients(&self) -> Result<(), EngineError> {
        let _no_grad = tch::no_grad_guard();
        for (_, parameter) in &self.parameters {
            let mut gradient = parameter.f_grad()?;
            if gradient.defined() {
                let _ = gradient.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Updates the parameters as step `step` (from 1). If a loss or gradient is not finite, the update is skipped and
    /// changes neither the parameters nor the moments. A skipped update still counts as a step of the schedule.
    pub(crate) fn make(
        &mut self,
        step: u64,
        gradients: &[Tensor],
    ) -> Result<UpdateStats, EngineError> {
        let learning_rate = self.schedule.learning_rate(step);
        // SAFETY: only the backward pass of this thread writes gradients, and it is done.
        let grad_norm = unsafe { global_norm(gradients)? };
        let skipped = match (self.finite, grad_norm.is_finite()) {
            (false, _) => Some("the loss is not finite".to_owned()),
            (true, false) => Some("the gradient is not finite".to_owned()),
            (true, true) => None,
        };
        if skipped.is_none() {
            let scale = (self.clip_norm / grad_norm).min(1.0);
            let (optimizer, parameters) = (&mut self.optimizer, &self.parameters);
            // SAFETY: only the thread of this worker uses the parameters, gradients and moments. Other workers get
            // copies (`Model::copy_parameters`, `snapshot`).
            unsafe { optimizer.update(parameters, gradients, learning_rate, scale)? };
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

/// The gradient that autograd accumulated for a parameter; zeros if no loss depends on the parameter.
pub(crate) fn gradient_of(parameter: &Tensor) -> Result<Tensor, EngineError> {
    let gradient = parameter.f_grad()?;
    if gradient.defined() {
        Ok(gradient)
    } else {
        Ok(parameter.detach().f_zeros_like()?)
    }
}
