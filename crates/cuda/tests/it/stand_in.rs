//! A stand-in for CUDA's driver: see stand_in.cpp.

use std::{
    ffi::{CString, c_char, c_int, c_uint, c_void},
    fs,
    path::PathBuf,
    ptr,
    sync::LazyLock,
};

use ddk_cuda::{Driver, Kernels, Source};
use libloading::{Library, Symbol};

use crate::compile::{compile, twin};

/// A driver without a GPU. Each has its own modules, streams and counts.
pub(crate) struct StandIn {
    library: Library,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl StandIn {
    pub(crate) fn new() -> Self {
        static COMPILED: LazyLock<PathBuf> =
            LazyLock::new(|| compile("stand_in", include_str!("stand_in.cpp")));
        // The loader opens a file once, so a copy is another driver.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libcuda.so.1");
        fs::copy(&*COMPILED, &path).unwrap();
        Self {
            // SAFETY: the library has no initialization that could do harm.
            library: unsafe { Library::new(&path).unwrap() },
            path,
            _folder: folder,
        }
    }

    /// Where the library is.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    pub(crate) fn driver(&self) -> Driver {
        Driver::open(&self.path).unwrap()
    }

    /// Kernels that this driver launches. `compiled` is called with each source that is compiled, and its architecture.
    pub(crate) fn kernels(
        &self,
        compiled: impl Fn(Source, &str) + Send + Sync + 'static,
    ) -> Kernels {
        let compile = move |source, architecture: &str| {
            compiled(source, architecture);
            Ok(cubin(source))
        };
        // SAFETY: the cubins are those of the stand-in, and have the kernels of the source.
        unsafe { Kernels::with_compiler(self.driver(), compile) }
    }

    /// Makes a device's context the calling thread's only one, or none.
    pub(crate) fn make_current(&self, device: Option<i32>) {
        // SAFETY: the signature is that of stand_in.cpp.
        let make = unsafe { self.function::<unsafe extern "C" fn(c_int)>("use") };
        // SAFETY: the number is negative or that of a device.
        unsafe { make(device.unwrap_or(-1)) };
    }

    /// Says whether libtorch has used a device. By default it has.
    pub(crate) fn activate(&self, device: i32, is_active: bool) {
        // SAFETY: the signature is that of stand_in.cpp.
        let activate = unsafe { self.function::<unsafe extern "C" fn(c_int, c_int)>("activate") };
        // SAFETY: the number is that of a device.
        unsafe { activate(device, c_int::from(is_active)) };
    }

    /// How often the device's context is retained.
    pub(crate) fn users(&self, device: i32) -> i32 {
        // SAFETY: the signature is that of stand_in.cpp.
        let users = unsafe { self.function::<unsafe extern "C" fn(c_int) -> c_int>("users") };
        // SAFETY: the number is that of a device.
        unsafe { users(device) }
    }

    /// Returns a stream of a device.
    pub(crate) fn stream(&self, device: i32) -> *mut c_void {
        let stream = ptr::without_provenance_mut(0x5000 + device.unsigned_abs() as usize);
        // SAFETY: the signature is that of stand_in.cpp.
        let add = unsafe { self.function::<unsafe extern "C" fn(c_int, *mut c_void)>("stream") };
        // SAFETY: the number is that of a device. Nothing follows the pointer.
        unsafe { add(device, stream) };
        stream
    }

    /// How many kernels ran on a stream.
    pub(crate) fn launches(&self, stream: *mut c_void) -> u32 {
        // SAFETY: the signature is that of stand_in.cpp.
        let launches =
            unsafe { self.function::<unsafe extern "C" fn(*mut c_void) -> c_uint>("launches") };
        // SAFETY: nothing follows the pointer.
        unsafe { launches(stream) }
    }

    /// Makes the next call of a function return an error.
    pub(crate) fn fail(&self, function: &str, code: i32) {
        let name = CString::new(function).unwrap();
        // SAFETY: the signature is that of stand_in.cpp.
        let fail = unsafe { self.function::<unsafe extern "C" fn(*const c_char, c_int)>("fail") };
        // SAFETY: the name ends with NUL.
        unsafe { fail(name.as_ptr(), code) };
    }

    /// How often a function was called.
    pub(crate) fn calls(&self, function: &str) -> u32 {
        let name = CString::new(function).unwrap();
        // SAFETY: the signature is that of stand_in.cpp.
        let calls =
            unsafe { self.function::<unsafe extern "C" fn(*const c_char) -> c_uint>("calls") };
        // SAFETY: the name ends with NUL.
        unsafe { calls(name.as_ptr()) }
    }

    /// # Safety
    /// The type is that of stand_in.cpp.
    unsafe fn function<F>(&self, name: &str) -> Symbol<'_, F> {
        let name = format!("stand_in_{name}");
        // SAFETY: the caller promises the type.
        unsafe { self.library.get(name.as_bytes()).unwrap() }
    }
}

/// A source as the stand-in loads it: the path of its twins, which ends with NUL.
pub(crate) fn cubin(source: Source) -> Vec<u8> {
    let path = twin(source).path().as_os_str().as_encoded_bytes();
    [path, &[0]].concat()
}
