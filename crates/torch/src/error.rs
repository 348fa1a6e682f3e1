//! Turns libtorch's exceptions into errors of this program.

use tch::TchError;

/// A libtorch call that failed.
#[derive(Debug, thiserror::Error)]
pub enum TorchError {
    /// A device has no room for a tensor; smaller chunks or micro-batches may fit.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// Anything else: shapes that do not match, a missing operator, ….
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
        if is_out_of_memory(&text) {
            Self::OutOfMemory(first)
        } else {
            Self::Other(first)
        }
    }
}

/// Messages of allocators and libraries when memory runs out: libtorch's for the CPU and for CUDA, the CUDA
/// runtime, and the libraries that allocate their own workspaces.
const OUT_OF_MEMORY: [&str; 6] = [
    "out of memory",
    "can't allocate memory",
    "cudaerrormemoryallocation",
    // cuBLAS, cuDNN, cuSOLVER, cuSPARSE: CUBLAS_STATUS_ALLOC_FAILED, ….
    "status_alloc_failed",
    "status_internal_error_device_allocation_failed",
    "status_internal_error_host_allocation_failed",
];

pub(crate) fn is_out_of_memory(text: &str) -> bool {
    let lower = text.to_lowercase();
    OUT_OF_MEMORY.iter().any(|form| lower.contains(form))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    /// The texts are from the sources of PyTorch 2.11.
    #[test]
    fn every_form_of_running_out_of_memory_is_known() {
        for text in [
            "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB",
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you \
             tried to allocate 8 bytes",
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
            "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        ] {
            let error = TorchError::from(TchError::Torch(text.to_owned()));
            assert!(error.is_out_of_memory(), "{text}");
        }
        for text in [
            "CUDA error: device-side assert triggered",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
            "CUDA error: an illegal memory access was encountered",
        ] {
            let error = TorchError::from(TchError::Torch(text.to_owned()));
            assert!(!error.is_out_of_memory(), "{text}");
        }
    }

    #[test]
    fn running_out_of_memory_can_be_told_from_a_wrong_shape() {
        let device = crate::test_device().unwrap();
        let huge = Tensor::f_zeros([1 << 50], (Kind::Float, device)).unwrap_err();
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
