//! Launches kernels with CUDA's driver, which is opened when it is needed.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_void},
    mem,
    path::Path,
    ptr,
};

use libloading::Library;

use crate::{CudaError, Launch, Source};

/// `CUresult`.
type Code = c_int;
/// `CUcontext`, `CUmodule`, `CUfunction` or `CUstream`.
type Handle = *mut c_void;
type Describe = unsafe extern "C" fn(Code, *mut *const c_char) -> Code;
type LaunchKernel = unsafe extern "C" fn(
    Handle,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    Handle,
    *const *const c_void,
    *mut *mut c_void,
) -> Code;

const SUCCESS: Code = 0;
const NOT_INITIALIZED: Code = 3;
const INVALID_IMAGE: Code = 200;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// CUDA's driver API: the functions that kernels need.
///
/// It makes no contexts. libtorch makes one for each GPU that it uses, the GPU's primary context. Kernels run in the
/// context that is current on the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    error_name: Describe,
    error_string: Describe,
    current: unsafe extern "C" fn(*mut Handle) -> Code,
    device: unsafe extern "C" fn(*mut c_int) -> Code,
    attribute: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> Code,
    state: unsafe extern "C" fn(c_int, *mut c_uint, *mut c_int) -> Code,
    retain: unsafe extern "C" fn(*mut Handle, c_int) -> Code,
    release: unsafe extern "C" fn(c_int) -> Code,
    push: unsafe extern "C" fn(Handle) -> Code,
    pop: unsafe extern "C" fn(*mut Handle) -> Code,
    load: unsafe extern "C" fn(*mut Handle, *const c_void) -> Code,
    function: unsafe extern "C" fn(*mut Handle, Handle, *const c_char) -> Code,
    launch: LaunchKernel,
}

/// A context of a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Context {
    /// The address of the `CUcontext`.
    handle: usize,
    device: i32,
}

impl Context {
    /// The number of the GPU, as CUDA and libtorch count: 0 is `cuda:0`.
    pub fn device(self) -> i32 {
        self.device
    }
}

/// The kernels of a source, loaded in a context.
///
/// They stay loaded for the life of the process. A kernel may still run when the last owner is gone, and when a process
/// ends, CUDA may shut down before its owners do.
#[derive(Debug)]
pub struct Module {
    source: Source,
    functions: Vec<(&'static str, Function)>,
}

/// A `CUfunction`.
#[derive(Debug, Clone, Copy)]
struct Function(Handle);

// SAFETY: it only names a kernel. The driver's functions may be called from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    fn function(&self, kernel: &str) -> Result<Function, CudaError> {
        let found = self.functions.iter().find(|(name, _)| *name == kernel);
        found
            .map(|(_, function)| *function)
            .ok_or_else(|| CudaError::UnknownKernel {
                source_name: self.source.name(),
                kernel: kernel.to_owned(),
            })
    }
}

impl Driver {
    /// Opens the driver: `libcuda.so.1`. It stays open for the life of the process.
    ///
    /// # Errors
    /// If the library cannot be loaded, or lacks a function.
    pub fn open(path: &Path) -> Result<Self, CudaError> {
        // SAFETY: the driver's initializers are NVIDIA's own.
        let library = unsafe { Library::new(path) }.map_err(CudaError::Driver)?;
        let driver = Self::of(&library).map_err(CudaError::Driver)?;
        // The functions were copied out of it.
        mem::forget(library);
        Ok(driver)
    }

    /// Looks up the functions.
    fn of(library: &Library) -> Result<Self, libloading::Error> {
        // SAFETY: the types are those in cuda.h of CUDA 13.0. Where cuda.h defines a name as another with a version at
        // its end, the name here is that one.
        unsafe {
            Ok(Self {
                error_name: *library.get(b"cuGetErrorName\0")?,
                error_string: *library.get(b"cuGetErrorString\0")?,
                current: *library.get(b"cuCtxGetCurrent\0")?,
                device: *library.get(b"cuCtxGetDevice\0")?,
                attribute: *library.get(b"cuDeviceGetAttribute\0")?,
                state: *library.get(b"cuDevicePrimaryCtxGetState\0")?,
                retain: *library.get(b"cuDevicePrimaryCtxRetain\0")?,
                release: *library.get(b"cuDevicePrimaryCtxRelease_v2\0")?,
                push: *library.get(b"cuCtxPushCurrent_v2\0")?,
                pop: *library.get(b"cuCtxPopCurrent_v2\0")?,
                load: *library.get(b"cuModuleLoadData\0")?,
                function: *library.get(b"cuModuleGetFunction\0")?,
                launch: *library.get(b"cuLaunchKernel\0")?,
            })
        }
    }

    /// Returns the context that is current on the calling thread.
    ///
    /// # Errors
    /// If no context is current, or if the driver fails.
    pub fn context(&self) -> Result<Context, CudaError> {
        let (mut handle, mut device) = (ptr::null_mut(), 0);
        let subject = || "the current context".to_owned();
        // SAFETY: `handle` is a place for a context.
        match unsafe { (self.current)(&raw mut handle) } {
            SUCCESS if !handle.is_null() => {}
            // Nothing in this process has initialized the driver.
            SUCCESS | NOT_INITIALIZED => return Err(CudaError::NoContext),
            code => return Err(self.error("cuCtxGetCurrent", subject(), code)),
        }
        // SAFETY: `device` is a place for a number.
        let code = unsafe { (self.device)(&raw mut device) };
        self.check("cuCtxGetDevice", code, subject)?;
        Ok(Context {
            handle: handle.addr(),
            device,
        })
    }

    /// Does `work` with a GPU's primary context as the current one. `device` is the number of the GPU, as libtorch
    /// counts.
    ///
    /// libtorch makes a GPU current for the time of an operation only. A thread with tensors on `cuda:1` may still have
    /// the context of `cuda:0`, or none.
    ///
    /// # Errors
    /// If libtorch has not used the GPU yet, or if the driver fails.
    pub fn on_device<T>(&self, device: i32, work: impl FnOnce() -> T) -> Result<T, CudaError> {
        match self.context() {
            Ok(context) if context.device == device => return Ok(work()),
            Ok(_) | Err(CudaError::NoContext) => {}
            Err(error) => return Err(error),
        }
        let subject = || format!("cuda:{device}");
        let (mut flags, mut is_active) = (0, 0);
        // SAFETY: `flags` and `is_active` are places for numbers.
        match unsafe { (self.state)(device, &raw mut flags, &raw mut is_active) } {
            SUCCESS if is_active != 0 => {}
            SUCCESS | NOT_INITIALIZED => return Err(CudaError::Unused(device)),
            code => return Err(self.error("cuDevicePrimaryCtxGetState", subject(), code)),
        }
        let mut handle = ptr::null_mut();
        // SAFETY: `handle` is a place for a context.
        let code = unsafe { (self.retain)(&raw mut handle, device) };
        self.check("cuDevicePrimaryCtxRetain", code, subject)?;
        let _retained = AtEnd(|| {
            // SAFETY: it was retained above, and is not used afterwards.
            unsafe { (self.release)(device) };
        });
        // SAFETY: the context lives until it is released.
        let code = unsafe { (self.push)(handle) };
        self.check("cuCtxPushCurrent", code, subject)?;
        let _current = AtEnd(|| {
            let mut handle = ptr::null_mut();
            // SAFETY: `handle` is a place for the context, which was pushed above.
            unsafe { (self.pop)(&raw mut handle) };
        });
        Ok(work())
    }

    /// Returns the architecture of a context's GPU, such as `sm_90`.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn architecture(&self, context: Context) -> Result<String, CudaError> {
        let mut capability = [0; 2];
        for (value, attribute) in capability.iter_mut().zip(CAPABILITY) {
            // SAFETY: `value` is a place for a number.
            let code = unsafe { (self.attribute)(value, attribute, context.device) };
            let subject = || format!("cuda:{}", context.device);
            self.check("cuDeviceGetAttribute", code, subject)?;
        }
        let [major, minor] = capability;
        Ok(format!("sm_{major}{minor}"))
    }

    /// Loads the kernels of a source in the current context.
    ///
    /// # Errors
    /// If the cubin is for another architecture, lacks a kernel, or does not fit in the GPU's memory.
    ///
    /// # Safety
    /// The cubin is complete: the driver finds its length in its header.
    pub unsafe fn load(&self, source: Source, cubin: &[u8]) -> Result<Module, CudaError> {
        let subject = || source.name().to_owned();
        if cubin.is_empty() {
            return Err(self.error("cuModuleLoadData", subject(), INVALID_IMAGE));
        }
        let mut module = ptr::null_mut();
        // SAFETY: `module` is a place for a module, and the caller promises that the cubin is complete.
        let code = unsafe { (self.load)(&raw mut module, cubin.as_ptr().cast()) };
        self.check("cuModuleLoadData", code, subject)?;
        let function = |kernel: &'static str| {
            let name = CString::new(kernel).unwrap_or_default();
            let mut function = ptr::null_mut();
            // SAFETY: `function` is a place for a function, and the name ends with NUL.
            let code = unsafe { (self.function)(&raw mut function, module, name.as_ptr()) };
            self.check("cuModuleGetFunction", code, || kernel.to_owned())?;
            Ok((kernel, Function(function)))
        };
        let functions: Result<_, CudaError> =
            source.kernels().iter().copied().map(function).collect();
        Ok(Module {
            source,
            functions: functions?,
        })
    }

    /// Starts a kernel on a stream, and does not wait for it. A launch without blocks does nothing.
    ///
    /// # Errors
    /// If the module has no such kernel, or if the driver fails. The driver may report the failure of an earlier kernel
    /// of the context; no later call succeeds then.
    ///
    /// # Safety
    /// - This driver has loaded the module, in the context that is current on the calling thread.
    /// - The arguments are those of the kernel, in number and type. Addresses are valid on the device until the kernel
    ///   has ended. Until then, nothing else uses what it writes, and nothing else writes what it reads.
    /// - The stream is a `CUstream` or `cudaStream_t` of the context, or null: its default stream.
    pub unsafe fn launch(
        &self,
        module: &Module,
        launch: &Launch,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let Function(function) = module.function(&launch.kernel)?;
        // The driver refuses an empty grid.
        if launch.blocks == 0 {
            return Ok(());
        }
        let places = launch.places();
        let (blocks, threads, shared) = (launch.blocks, launch.threads, 0);
        // SAFETY: the driver copies the arguments before it returns. The caller promises the rest.
        let code = unsafe {
            (self.launch)(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                shared,
                stream,
                places.as_ptr(),
                ptr::null_mut(),
            )
        };
        self.check("cuLaunchKernel", code, || launch.kernel.clone())
    }

    fn check(
        &self,
        function: &'static str,
        code: Code,
        subject: impl FnOnce() -> String,
    ) -> Result<(), CudaError> {
        match code {
            SUCCESS => Ok(()),
            code => Err(self.error(function, subject(), code)),
        }
    }

    fn error(&self, function: &'static str, subject: String, code: Code) -> CudaError {
        let text = |describe: Describe, otherwise: &str| {
            let mut text = ptr::null();
            // SAFETY: `text` is a place for a string. The driver's strings are static. Null stands for no text.
            unsafe {
                match describe(code, &raw mut text) {
                    SUCCESS if !text.is_null() => {
                        CStr::from_ptr(text).to_string_lossy().into_owned()
                    }
                    _ => otherwise.to_owned(),
                }
            }
        };
        CudaError::Call {
            function,
            subject,
            name: text(self.error_name, "unknown error"),
            description: text(self.error_string, "the driver has no description"),
            code,
        }
    }
}

/// Does something when it goes out of scope, also after a panic.
struct AtEnd<F: FnMut()>(F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
