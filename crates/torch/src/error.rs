//! libtorch's exceptions as errors of ours.

use tch::TchError;

/// A libtorch call that failed.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// A device has no room for a tensor; smaller chunks or micro-batches may fit.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// Anything else: shapes that do not match, an operator that is not there, ….
    #[error("libtorch: {0}")]
    Other(String),
}

impl TorchError {
    /// Whether a device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory(_))
    }
}

impl From<TchError> for TorchError {
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        // The first line says what happened; the rest is libtorch's C++ stack.
        let first = text.lines().next().unwrap_or_default().to_owned();
        let lower = text.to_lowercase();
        if lower.contains("out of memory") || lower.contains("can't allocate memory") {
            Self::OutOfMemory(first)
        } else {
            Self::Other(first)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn running_out_of_memory_can_be_told_from_a_wrong_shape() {
        let huge = Tensor::f_zeros([1 << 50], (Kind::Float, Device::Cpu)).unwrap_err();
        assert!(TorchError::from(huge).is_out_of_memory());
        let (a, b) = (
            Tensor::from_slice(&[1.0, 2.0]),
            Tensor::from_slice(&[1.0, 2.0, 3.0]),
        );
        let error = TorchError::from(a.f_add(&b).unwrap_err());
        assert!(!error.is_out_of_memory());
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
}
