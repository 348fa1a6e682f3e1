//! Defines the errors of compiling kernels.

/// An error of NVRTC.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The library cannot be loaded, or lacks a function.
    #[error("cannot load NVRTC: {0}; install nvidia-cuda-nvrtc")]
    Library(#[from] libloading::Error),
    /// A kernel does not compile.
    #[error("NVRTC cannot compile {source_name} for {architecture} ({what}): {log}")]
    Compile {
        /// The file with the kernels.
        source_name: &'static str,
        /// The architecture, such as `sm_90`.
        architecture: String,
        /// NVRTC's name of the error.
        what: String,
        /// What the compiler says.
        log: String,
    },
}
