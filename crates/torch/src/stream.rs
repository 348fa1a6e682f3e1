//! CUDA streams. Their functions are only in `libtorch_cuda.so`, which DDK loads when a GPU is first requested
//! ([`parse_device`](crate::parse_device)). They are looked up by name and never linked.

use std::{ffi::c_void, mem::transmute, ptr};

use tch::{Device, Kind, Tensor};

use crate::{TorchError, determinism::symbol};

/// Gives the calling thread its own stream on a GPU. Returns false on the CPU, which has no streams.
pub(crate) fn take_stream(device: Device) -> Result<bool, TorchError> {
    let Device::Cuda(index) = device else {
        return Ok(false);
    };
    let device = i32::try_from(index).unwrap_or(i32::MAX);
    let mut stream = ptr::null_mut();
    // SAFETY: the types are those in torch/csrc/stable/c/shim.h of this release (`crate::VERSION`). `stream` is a
    // place for a pointer. The stream belongs to the device, and libtorch never destroys the streams of its pool.
    unsafe {
        type FromPool = unsafe extern "C" fn(bool, i32, *mut *mut c_void) -> i32;
        let from_pool: FromPool = transmute(symbol(c"torch_get_cuda_stream_from_pool")?);
        let set_current: OfStream = transmute(symbol(c"torch_set_current_cuda_stream")?);
        done(from_pool(false, device, &raw mut stream), device)?;
        done(set_current(stream, device), device)?;
    }
    Ok(true)
}

/// Returns the calling thread's current stream on a GPU, a `cudaStream_t`. libtorch never destroys its streams.
///
/// # Errors
/// If the device is no GPU, if libtorch lacks the functions for streams, or if the GPU reports an error.
pub fn current_stream(device: Device) -> Result<*mut c_void, TorchError> {
    let Device::Cuda(index) = device else {
        return Err(TorchError::Other(format!("{device:?} has no streams")));
    };
    let device = i32::try_from(index).unwrap_or(i32::MAX);
    let mut stream = ptr::null_mut();
    // SAFETY: as above. The function is declared in torch/csrc/inductor/aoti_torch/c/shim.h.
    unsafe {
        type Current = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;
        let current: Current = transmute(symbol(c"aoti_torch_get_current_cuda_stream")?);
        done(current(device, &raw mut stream), device)?;
    }
    Ok(stream)
}

/// Waits until a GPU has finished the work of the calling thread. On the CPU there is nothing to wait for.
///
/// # Errors
/// If libtorch lacks the functions for streams, or if the GPU reports an error.
pub fn synchronize(device: Device) -> Result<(), TorchError> {
    let Device::Cuda(index) = device else {
        return Ok(());
    };
    let stream = current_stream(device)?;
    let device = i32::try_from(index).unwrap_or(i32::MAX);
    // SAFETY: as in `take_stream`.
    unsafe {
        let synchronize: OfStream = transmute(symbol(c"torch_cuda_stream_synchronize")?);
        done(synchronize(stream, device), device)
    }
}

/// Takes a stream and the number of its device.
type OfStream = unsafe extern "C" fn(*mut c_void, i32) -> i32;

/// Converts the return code of a function: 0 means success. The code says nothing else, so another call on the
/// device finds the reason: CUDA reports a past error at the next call.
fn done(code: i32, device: i32) -> Result<(), TorchError> {
    if code == 0 {
        return Ok(());
    }
    let gpu = Device::Cuda(usize::try_from(device).unwrap_or(0));
    let probe = Tensor::f_zeros([1], (Kind::Float, gpu)).and_then(|zero| zero.f_double_value(&[0]));
    Err(match probe {
        Err(reason) => reason.into(),
        Ok(_) => TorchError::Other(format!(
            "a stream of cuda:{device} failed with code {code}; libtorch printed the reason to stderr"
        )),
    })
}
