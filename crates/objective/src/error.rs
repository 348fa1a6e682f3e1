//! What can go wrong in the head.

use ddk_torch::TorchError;

/// An error of the head.
#[derive(Debug, thiserror::Error)]
pub enum ObjectiveError {
    /// Inputs that do not belong together.
    #[error("{what} has the shape {got:?}, expected {expected}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// Its shape.
        got: Vec<i64>,
        /// What it should be.
        expected: String,
    },
    /// A libtorch call; a label outside of the vocabulary ends here too.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl ObjectiveError {
    /// Whether a device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch(error) if error.is_out_of_memory())
    }
}

impl From<tch::TchError> for ObjectiveError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}
