//! What the student minimises.

/// `CE(student, labels) + gamma * KL(teacher || student)`, Eq. 3 of the DDK paper.
///
/// The cross-entropy is always at temperature 1; the KL is the forward one, with both softmaxes at `temperature`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Objective {
    /// Weight of the KL; 0 leaves the teacher out.
    pub gamma: f64,
    /// Temperature of both softmaxes in the KL.
    pub temperature: f64,
    /// Multiplies the KL by the temperature's square, in its value and its gradient alike (Hinton et al., 2015). The paper
    /// does not.
    pub temperature_squared: bool,
}

impl Default for Objective {
    /// The paper's settings.
    fn default() -> Self {
        Self {
            gamma: 0.2,
            temperature: 1.0,
            temperature_squared: false,
        }
    }
}

impl Objective {
    /// What the KL at temperature T is multiplied by.
    pub(crate) fn kl_factor(&self) -> f64 {
        if self.temperature_squared {
            self.temperature * self.temperature
        } else {
            1.0
        }
    }
}
