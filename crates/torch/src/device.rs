//! Devices by name.

use std::{ffi::CStr, path::PathBuf, sync::OnceLock};

use tch::{Device, TchError, Tensor};

/// Why a device cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// Not a device's name.
    #[error("`{0}` is not a device: expected `cpu`, or `cuda:0`, `cuda:1`, …")]
    Unknown(String),
    /// The libtorch in use is one for the CPU.
    #[error(
        "CUDA was asked for, but {} could not be loaded: {reason}; build with a PyTorch that has CUDA (LIBTORCH_USE_PYTORCH=1 make build)",
        library.display()
    )]
    NoCudaLibrary {
        /// The library that was tried.
        library: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// libtorch sees fewer GPUs.
    #[error("`cuda:{index}` was asked for, but libtorch sees {found} CUDA devices")]
    Absent {
        /// The device's number.
        index: usize,
        /// How many there are.
        found: i64,
    },
}

/// The device of a name such as `cpu` or `cuda:0`.
///
/// The program is linked with libtorch's CPU part alone. The first CUDA device asked for loads `libtorch_cuda.so` from the
/// folder of the libtorch in use, which registers the CUDA backend. That has to be before the first backward of the process: autograd
/// asks for the GPUs then, and never again.
pub fn parse_device(text: &str) -> Result<Device, DeviceError> {
    if text == "cpu" {
        return Ok(Device::Cpu);
    }
    let index: usize = text
        .strip_prefix("cuda:")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| DeviceError::Unknown(text.to_owned()))?;
    load_cuda()?;
    let found = tch::Cuda::device_count();
    if (index as i64) < found {
        Ok(Device::Cuda(index))
    } else {
        Err(DeviceError::Absent { index, found })
    }
}

/// A tensor of the CPU on a device. To a GPU it is copied from pinned memory, so that the calling thread need not wait for what the
/// GPU was given before.
pub fn upload(tensor: Tensor, device: Device) -> Result<Tensor, TchError> {
    if device == Device::Cpu {
        return Ok(tensor);
    }
    // libtorch keeps pinned memory until its copies are done.
    let pinned = tensor.f_internal_pin_memory(device)?;
    pinned.f_to_device_(device, tensor.kind(), true, false)
}

fn load_cuda() -> Result<(), DeviceError> {
    static LOADED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let library = libtorch_folder().join("libtorch_cuda.so");
            let mut name = library.as_os_str().as_encoded_bytes().to_vec();
            name.push(0);
            // SAFETY: `name` ends with its only NUL (paths hold none); the library's initialisers are libtorch's own.
            let handle =
                unsafe { libc::dlopen(name.as_ptr().cast(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            if !handle.is_null() {
                return Ok(());
            }
            // SAFETY: after a failed dlopen on this thread, dlerror gives a string or null.
            let reason = unsafe {
                let message = libc::dlerror();
                if message.is_null() {
                    "no reason given".to_owned()
                } else {
                    CStr::from_ptr(message).to_string_lossy().into_owned()
                }
            };
            Err(DeviceError::NoCudaLibrary { library, reason })
        })
        .clone()
}

/// The folder of the libtorch that this process has loaded.
fn libtorch_folder() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(PathBuf::from)
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name == "libtorch_cpu.so")
        })
        .and_then(|path| Some(path.parent()?.to_owned()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        assert_eq!(parse_device("cpu").unwrap(), Device::Cpu);
        for bad in ["gpu", "cuda", "cuda:", "cuda:x", "CPU", ""] {
            assert!(
                matches!(parse_device(bad), Err(DeviceError::Unknown(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
        // A link to libtorch, so that it is loaded even if this is the only test that runs.
        let _ = tch::Tensor::from_slice(&[0.0_f32]);
        let error = parse_device("cuda:97").unwrap_err().to_string();
        assert!(
            error.contains("libtorch_cuda.so") || error.contains("libtorch sees"),
            "{error}"
        );
    }
}
