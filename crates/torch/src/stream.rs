//! CUDA streams. Their functions are in `libtorch_cuda.so` alone, which is loaded when a GPU is first asked for
//! ([`parse_device`](crate::parse_device)): they are found by name, never linked.

use std::{
    ffi::{CStr, c_void},
    ptr,
};

use tch::Device;

use crate::TorchError;

/// 0 where it worked. The last argument is written to.
type FromPool = unsafe extern "C" fn(bool, i32, *mut *mut c_void) -> i32;
type Current = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;
type OfStream = unsafe extern "C" fn(*mut c_void, i32) -> i32;

/// A stream that the thread which took it gives its work on a GPU to. Not `Send`: what is current belongs to a thread.
#[derive(Debug)]
pub(crate) struct Stream {
    handle: *mut c_void,
    device: i32,
    synchronize: OfStream,
}

impl Stream {
    /// Takes a stream of the device for the calling thread, other than other threads'; `None` on a CPU, which has none.
    pub(crate) fn take(device: Device) -> Result<Option<Self>, TorchError> {
        let Device::Cuda(index) = device else {
            return Ok(None);
        };
        let device = i32::try_from(index).unwrap_or(i32::MAX);
        // SAFETY: these are the types that torch/csrc/stable/c/shim.h of this release (`crate::VERSION`) declares.
        let (from_pool, set_current, synchronize) = unsafe {
            (
                std::mem::transmute::<*mut c_void, FromPool>(symbol(
                    c"torch_get_cuda_stream_from_pool",
                )?),
                std::mem::transmute::<*mut c_void, OfStream>(symbol(
                    c"torch_set_current_cuda_stream",
                )?),
                std::mem::transmute::<*mut c_void, OfStream>(symbol(
                    c"torch_cuda_stream_synchronize",
                )?),
            )
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a place for a pointer.
        done(unsafe { from_pool(false, device, &raw mut handle) }, device)?;
        // SAFETY: the stream is the device's; libtorch never destroys those of its pool.
        done(unsafe { set_current(handle, device) }, device)?;
        Ok(Some(Self {
            handle,
            device,
            synchronize,
        }))
    }

    /// Waits until the GPU has done what was given to the stream.
    pub(crate) fn wait(&self) -> Result<(), TorchError> {
        // SAFETY: as above.
        done(
            unsafe { (self.synchronize)(self.handle, self.device) },
            self.device,
        )
    }
}

/// Waits until a GPU has done what the calling thread gave it; on the CPU there is nothing to wait for.
pub fn finish(device: Device) -> Result<(), TorchError> {
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    let device = i32::try_from(index).unwrap_or(i32::MAX);
    let mut handle = ptr::null_mut();
    // SAFETY: the types are those of torch/csrc/inductor/aoti_torch/c/shim.h and of torch/csrc/stable/c/shim.h; the pointer is to a place for
    // a pointer.
    unsafe {
        let current = symbol(c"aoti_torch_get_current_cuda_stream")?;
        let current = std::mem::transmute::<*mut c_void, Current>(current);
        let synchronize = symbol(c"torch_cuda_stream_synchronize")?;
        let synchronize = std::mem::transmute::<*mut c_void, OfStream>(synchronize);
        done(current(device, &raw mut handle), device)?;
        done(synchronize(handle, device), device)
    }
}

fn symbol(name: &CStr) -> Result<*mut c_void, TorchError> {
    // SAFETY: the name ends with its NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    match found.is_null() {
        false => Ok(found),
        true => Err(TorchError::Other(format!(
            "the libtorch in use has no function {}: build with PyTorch {}",
            name.to_string_lossy(),
            crate::VERSION
        ))),
    }
}

fn done(code: i32, device: i32) -> Result<(), TorchError> {
    match code {
        0 => Ok(()),
        // libtorch prints what happened to stderr.
        code => Err(TorchError::Other(format!(
            "a stream of cuda:{device} failed with code {code}"
        ))),
    }
}
