//! Runs kernels on the CPU, for tests on machines without a GPU.

use std::{
    env,
    ffi::c_void,
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
};

use libloading::{Library, Symbol};

use crate::{CudaError, Launch, Source};

/// Defines CUDA's keywords and built-in variables in C++.
const HEADER: &str = include_str!("../kernels/twin.h");

/// The kernels of a source, compiled as C++. Each thread of a block is a thread, and blocks run one after another.
#[derive(Debug)]
pub struct Twin {
    library: Library,
    path: PathBuf,
}

impl Twin {
    /// Compiles a source with the C++ compiler of this machine (`c++`, or the one that `CXX` names), and keeps the
    /// library in a folder.
    ///
    /// # Errors
    /// If the compiler is missing or finds a mistake, or if the library cannot be written or loaded.
    pub fn compile(source: Source, folder: &Path) -> Result<Self, CudaError> {
        let twins = source
            .kernels()
            .iter()
            .map(|name| format!("TWIN({name})\n"));
        let text = format!("{HEADER}\n{}{}", source.text(), twins.collect::<String>());
        let path = compile_cpp(source.name(), &text, folder)?;
        // SAFETY: the library has no initialization that could do harm.
        let library = unsafe { Library::new(&path) }.map_err(CudaError::Twin)?;
        Ok(Self { library, path })
    }

    /// Where the library is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a kernel, and waits for it.
    ///
    /// # Errors
    /// If the source has no such kernel.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in number and type. Addresses are valid on the CPU. Meanwhile, nothing
    /// else uses what the kernel writes, and nothing else writes what it reads.
    pub unsafe fn run(&self, launch: &Launch) -> Result<(), CudaError> {
        type Run = unsafe extern "C" fn(u32, u32, *const *const c_void);
        let name = format!("twin_{}", launch.kernel);
        let places = launch.places();
        // SAFETY: the signature is that of TWIN. The caller promises the rest.
        unsafe {
            let kernel: Symbol<Run> = self.library.get(name.as_bytes()).map_err(CudaError::Twin)?;
            kernel(launch.blocks, launch.threads, places.as_ptr());
        }
        Ok(())
    }
}

/// Compiles C++ to a library in a folder, and returns its path.
///
/// # Errors
/// If the compiler is missing or finds a mistake, or if the library cannot be written.
pub fn compile_cpp(name: &str, text: &str, folder: &Path) -> Result<PathBuf, CudaError> {
    let library = folder.join(format!("{name}.so"));
    // Another process may compile the same library now, or have it open.
    let unfinished = folder.join(format!("{name}.{}", process::id()));
    let file = unfinished.with_added_extension("cpp");
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    // Without it, each fused operation is a call.
    let fma = is_x86_feature_detected!("fma").then_some("-mfma");
    let compiled = fs::write(&file, text).and_then(|()| {
        Command::new(compiler)
            .args(["-std=c++20", "-O2", "-ffp-contract=off", "-pthread"])
            .args(fma)
            .args(["-Wall", "-Wextra", "-Werror"])
            .args(["-shared", "-fPIC", "-fvisibility=hidden", "-o"])
            .args([&unfinished, &file])
            .output()
    });
    let failed = |log: String| CudaError::Cpp {
        library: name.to_owned(),
        log,
    };
    let output = compiled.map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    fs::rename(&unfinished, &library).map_err(|error| failed(error.to_string()))?;
    Ok(library)
}
