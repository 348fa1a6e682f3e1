//! Defines the errors of compiling and launching kernels.

/// An error of NVRTC or of CUDA's driver.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// NVRTC cannot be loaded, or lacks a function.
    #[error("cannot load NVRTC: {0}; install nvidia-cuda-nvrtc")]
    Library(#[from] libloading::Error),
    /// CUDA's driver cannot be loaded, or lacks a function.
    #[error("cannot load CUDA's driver: {0}; install NVIDIA's driver")]
    Driver(#[source] libloading::Error),
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
    /// The C++ of a test does not compile.
    #[error("cannot compile {library} as C++: {log}")]
    Cpp {
        /// The name of the library.
        library: String,
        /// What the compiler says.
        log: String,
    },
    /// A library of a test cannot be loaded, or lacks a kernel.
    #[error("cannot run kernels on the CPU: {0}")]
    Twin(#[source] libloading::Error),
    /// The calling thread has no context.
    #[error(
        "no CUDA context is current on this thread; compute something with libtorch on the GPU before the first kernel"
    )]
    NoContext,
    /// libtorch has not used this GPU.
    #[error(
        "cuda:{0} has no CUDA context; compute something with libtorch on it before the first kernel"
    )]
    Unused(i32),
    /// The driver refused a call. It may report the failure of an earlier kernel.
    #[error("{function} failed for {subject}: {name} ({code}), {description}")]
    Call {
        /// The function of the driver.
        function: &'static str,
        /// A kernel, a file of kernels, or a device.
        subject: String,
        /// CUDA's name of the error, such as `CUDA_ERROR_INVALID_VALUE`.
        name: String,
        /// What CUDA says about it.
        description: String,
        /// CUDA's number of the error.
        code: i32,
    },
    /// The source has no kernel of this name.
    #[error("{source_name} has no kernel `{kernel}`")]
    UnknownKernel {
        /// The file with the kernels.
        source_name: &'static str,
        /// The name that was asked for.
        kernel: String,
    },
}
