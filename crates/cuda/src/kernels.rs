//! The kernels of a process: compiled once per architecture, and loaded once per GPU.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    fmt,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use crate::{Context, CudaError, Driver, Launch, Module, Nvrtc, Source};

/// CUDA's driver, as the loader finds it.
const DRIVER: &str = "libcuda.so.1";
/// NVRTC, as the loader finds it once libtorch's CUDA libraries are loaded.
const NVRTC: &str = "libnvrtc.so.13";

type Compile = dyn Fn(Source, &str) -> Result<Vec<u8>, CudaError> + Send + Sync;

/// Compiles, loads and launches kernels, from any thread, in the thread's current context.
///
/// The first launch of a source on a GPU compiles the source, which takes about a second. Other threads wait meanwhile.
/// Errors are not kept: the next launch tries again.
pub struct Kernels {
    driver: Driver,
    compile: Box<Compile>,
    loaded: Mutex<Loaded>,
}

#[derive(Default)]
struct Loaded {
    /// By source and architecture.
    cubins: HashMap<(Source, String), Vec<u8>>,
    /// A module belongs to a context. libtorch has one context per GPU.
    modules: HashMap<(Source, Context), Arc<Module>>,
}

impl Kernels {
    /// Returns the kernels of this process, and opens CUDA's driver and NVRTC at the first call. `nvrtc` is the path of
    /// NVRTC, which only the first call uses. Default: `libnvrtc.so.13`, which the loader finds by name after
    /// `ddk_torch::parse_device` has loaded it.
    ///
    /// # Errors
    /// If a library cannot be loaded. Every later call then returns the same error.
    pub fn of_process(nvrtc: Option<&Path>) -> Result<&'static Self, &'static CudaError> {
        static KERNELS: OnceLock<Result<Kernels, CudaError>> = OnceLock::new();
        let nvrtc = nvrtc.unwrap_or(Path::new(NVRTC));
        KERNELS
            .get_or_init(|| Self::open(Path::new(DRIVER), nvrtc))
            .as_ref()
    }

    /// Opens CUDA's driver and NVRTC by their paths.
    ///
    /// # Errors
    /// If a library cannot be loaded, or if the driver lacks a function.
    pub fn open(driver: &Path, nvrtc: &Path) -> Result<Self, CudaError> {
        let (driver, nvrtc) = (Driver::open(driver)?, Nvrtc::open(nvrtc)?);
        let compile = move |source, architecture: &str| {
            let compiled = nvrtc.compile(source, architecture)?;
            Ok(compiled.cubin)
        };
        // SAFETY: NVRTC returns complete cubins, or none.
        Ok(unsafe { Self::with_compiler(driver, compile) })
    }

    /// Uses another compiler: a function that turns a source into a cubin for an architecture, such as `sm_90`.
    ///
    /// # Safety
    /// The cubins are complete, as [`Driver::load`] requires. Their kernels have the parameters of those of the source.
    pub unsafe fn with_compiler(
        driver: Driver,
        compile: impl Fn(Source, &str) -> Result<Vec<u8>, CudaError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            driver,
            compile: Box::new(compile),
            loaded: Mutex::default(),
        }
    }

    /// CUDA's driver.
    pub fn driver(&self) -> &Driver {
        &self.driver
    }

    /// Compiles and loads the kernels of a source for the current context, so that no later launch waits for that.
    ///
    /// Loading may wait for the kernels that run on the GPU. It deadlocks if a running kernel waits for another process
    /// that waits for this one, as NCCL's can.
    ///
    /// # Errors
    /// If the calling thread has no current context, if the source does not compile, or if the driver fails.
    pub fn prepare(&self, source: Source) -> Result<(), CudaError> {
        self.module(source).map(drop)
    }

    /// Starts a kernel of a source in the current context, on a stream, and does not wait for it. A launch without
    /// blocks starts nothing.
    ///
    /// # Errors
    /// As for [`Self::prepare`] and [`Driver::launch`].
    ///
    /// # Safety
    /// - The arguments are those of the kernel, in number and type. Addresses are valid on the GPU of the current
    ///   context until the kernel has ended. Until then, nothing else uses what it writes, and nothing else writes what
    ///   it reads.
    /// - The stream is a `cudaStream_t` or `CUstream` of the current context, or null: its default stream.
    pub unsafe fn launch(
        &self,
        source: Source,
        launch: &Launch,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let module = self.module(source)?;
        // SAFETY: the module is of the current context. The caller promises the rest.
        unsafe { self.driver.launch(&module, launch, stream) }
    }

    /// Returns the kernels of a source, loaded in the current context.
    fn module(&self, source: Source) -> Result<Arc<Module>, CudaError> {
        let context = self.driver.context()?;
        // A compiler that panics leaves the maps as they were.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let Loaded { cubins, modules } = &mut *loaded;
        let vacant = match modules.entry((source, context)) {
            Entry::Occupied(module) => return Ok(module.get().clone()),
            Entry::Vacant(vacant) => vacant,
        };
        let architecture = self.driver.architecture(context)?;
        let cubin = match cubins.entry((source, architecture)) {
            Entry::Occupied(cubin) => cubin.into_mut(),
            Entry::Vacant(vacant) => {
                let cubin = (self.compile)(source, &vacant.key().1)?;
                vacant.insert(cubin)
            }
        };
        // SAFETY: the compiler's cubins are complete.
        let module = unsafe { self.driver.load(source, cubin) }?;
        Ok(vacant.insert(Arc::new(module)).clone())
    }
}

impl fmt::Debug for Kernels {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Kernels").finish_non_exhaustive()
    }
}
