//! The objective that the student minimizes.

use ddk_kernel::{Divergence, Loss};

/// `CE(student, labels) + gamma * D(teacher, student) + layer_weight * L(teacher, student)`: Eq. 3 of the DDK
/// paper, with a choice of divergences instead of its KL, and with TED's distance between layers (see
/// [`crate::layer_loss`]).
///
/// The cross-entropy is always at temperature 1. Both softmaxes in the divergence are at `temperature`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Divergence between the teacher's and the student's distributions. `None`: cross-entropy alone.
    pub divergence: Option<Divergence>,
    /// Weight of the divergence; 0 turns it off.
    pub gamma: f64,
    /// Temperature of both softmaxes in the divergence.
    pub temperature: f64,
    /// Multiplies the value and the gradient of the divergence by the square of the temperature (Hinton et al.,
    /// 2015). The DDK paper does not.
    pub scale_by_temperature_squared: bool,
    /// Weight of the distance between layers; 0 turns it off.
    pub layer_weight: f64,
}

impl Default for Objective {
    /// The paper's settings.
    fn default() -> Self {
        Self {
            divergence: Some(Divergence::ForwardKl),
            gamma: 0.2,
            temperature: 1.0,
            scale_by_temperature_squared: false,
            layer_weight: 0.0,
        }
    }
}

impl Objective {
    /// Cross-entropy alone: continued pre-training.
    pub fn cross_entropy() -> Self {
        Self {
            divergence: None,
            ..Self::default()
        }
    }

    /// Whether the loss uses the teacher's output. If not, the teacher makes no forward pass.
    pub fn needs_teacher_output(&self) -> bool {
        self.divergence_weight() != 0.0 || self.layer_weight != 0.0
    }

    /// The weight of the divergence in the loss: gamma, or 0 if there is no divergence.
    pub fn divergence_weight(&self) -> f64 {
        self.divergence.map_or(0.0, |_| self.gamma)
    }

    /// What a kernel computes of it.
    pub(crate) fn of_kernel(&self) -> Loss {
        Loss {
            divergence: self.divergence,
            weight: self.divergence_weight(),
            temperature: self.temperature,
            factor: self.temperature_factor(),
        }
    }

    /// The factor of the divergence at temperature T.
    pub(crate) fn temperature_factor(&self) -> f64 {
        if self.scale_by_temperature_squared {
            self.temperature * self.temperature
        } else {
            1.0
        }
    }
}
