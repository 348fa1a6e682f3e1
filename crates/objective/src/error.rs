//! Errors of the chunked head and the layer distance.

use ddk_torch::TorchError;

/// An error of the head or the layer distance.
#[derive(Debug, thiserror::Error)]
pub enum ObjectiveError {
    /// The shapes of the inputs do not match.
    #[error("{0}")]
    Shape(String),
    /// A libtorch call failed. A label outside the vocabulary also gives this error.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl ObjectiveError {
    /// Whether a device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch(error) if error.is_out_of_memory())
    }
}

/// Refuses an input because of its shape.
pub(crate) fn wrong_shape(what: &str, got: &[i64], expected: &str) -> Result<(), ObjectiveError> {
    let message = format!("{what} has the shape {got:?}, expected {expected}");
    Err(ObjectiveError::Shape(message))
}

impl From<tch::TchError> for ObjectiveError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}
