//! The same bits each time on a GPU. On the CPU they are the same anyway.

use std::{
    ffi::{CStr, c_void},
    mem::transmute,
};

use crate::TorchError;

/// cuBLAS adds in the same order each time only if its workspace is set. Eight buffers of 4 MiB are what libtorch takes on a Hopper GPU
/// anyway, so this costs nothing there.
const CUBLAS_WORKSPACE: (&CStr, &CStr) = (c"CUBLAS_WORKSPACE_CONFIG", c":4096:8");

/// Sets cuBLAS's workspace unless the environment has one. Call it before the first thread starts.
pub fn prepare_cublas() {
    let (name, value) = CUBLAS_WORKSPACE;
    // SAFETY: both end with their NUL; no other thread reads the environment yet.
    unsafe {
        libc::setenv(name.as_ptr(), value.as_ptr(), 0);
    }
}

/// Makes libtorch choose algorithms that give the same bits each time, for the whole process: flash attention's backward adds in one
/// order, cuDNN's attention is left out.
///
/// # Errors
/// A libtorch of another release.
pub fn make_deterministic() -> Result<(), TorchError> {
    type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
    type SetDeterministic = unsafe extern "C" fn(*mut c_void, bool, bool);
    // SAFETY: the names are C++'s for `at::globalContext()` and `at::Context::setDeterministicAlgorithms(bool, bool)` in
    // ATen/Context.h of this release; a method takes its object first. Operations without such an algorithm only warn.
    unsafe {
        let context: GlobalContext = transmute(symbol(c"_ZN2at13globalContextEv")?);
        let set: SetDeterministic =
            transmute(symbol(c"_ZN2at7Context26setDeterministicAlgorithmsEbb")?);
        set(context(), true, true);
    }
    Ok(())
}

/// A function of the libtorch in use, by its name.
pub(crate) fn symbol(name: &CStr) -> Result<*mut c_void, TorchError> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    /// The flag has an effect that can be seen on the CPU: new memory is filled.
    #[test]
    fn libtorch_takes_the_flag() {
        make_deterministic().unwrap();
        let empty = Tensor::f_empty([64], (Kind::Float, Device::Cpu)).unwrap();
        assert!(
            Vec::<f32>::try_from(&empty)
                .unwrap()
                .iter()
                .all(|x| x.is_nan())
        );
    }
}
