//! Finds devices by name, and loads CUDA.

use std::{
    ffi::{CStr, CString},
    mem::transmute,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tch::{Device, TchError, Tensor};

/// Why a device cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// Not a device name.
    #[error("`{0}` is not a device: expected `cpu`, or `cuda:0`, `cuda:1`, …")]
    Unknown(String),
    /// The libtorch in use is for the CPU only.
    #[error(
        "CUDA was asked for, but {} could not be loaded: {reason}; build with a PyTorch that has CUDA \
         (LIBTORCH_USE_PYTORCH=1 make build; see docs/install.md)",
        library.display()
    )]
    NoCudaLibrary {
        /// The library that DDK tried to load.
        library: PathBuf,
        /// The loader's message.
        reason: String,
    },
    /// Autograd looked for GPUs before there was a CUDA backend, and never looks again.
    #[error(
        "CUDA was loaded too late: libtorch computed a gradient on the CPU first; name every CUDA device before \
         that, or start another process"
    )]
    TooLate,
    /// libtorch sees fewer GPUs.
    #[error(
        "`cuda:{index}` was asked for, but libtorch sees {found} CUDA device{}",
        if *found == 1 { "" } else { "s" }
    )]
    Absent {
        /// The requested device number.
        index: usize,
        /// Number of devices found.
        found: i64,
    },
}

/// Parses the name of a device, such as `cpu` or `cuda:0`.
///
/// The program links only the CPU part of libtorch. The first request for a CUDA device loads `libtorch_cuda.so`
/// from the folder of the libtorch in use, which registers the CUDA backend. This must happen before the first
/// backward pass of the process: autograd looks for GPUs then and never again.
///
/// # Errors
/// If it is not a device name, if CUDA cannot be loaded or is loaded too late, or if there is no such GPU.
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

/// The device for tests, from `DDK_TEST_DEVICE`. Default: the CPU.
///
/// # Errors
/// See [`parse_device`].
pub fn test_device() -> Result<Device, DeviceError> {
    let name = std::env::var("DDK_TEST_DEVICE");
    parse_device(name.as_deref().unwrap_or("cpu"))
}

/// Moves a CPU tensor to a device. A copy to a GPU goes through pinned memory, so that the calling thread need not wait
/// for the GPU's earlier work.
///
/// # Errors
/// If libtorch fails, for example because memory runs out.
pub fn to_device(tensor: Tensor, device: Device) -> Result<Tensor, TchError> {
    if device == Device::Cpu {
        return Ok(tensor);
    }
    // libtorch keeps pinned memory until its copies are done.
    let pinned = tensor.f_internal_pin_memory(device)?;
    pinned.f_to_device_(device, tensor.kind(), true, false)
}

/// Returns the UUID of GPU `cuda:index`, as `nvidia-smi -L` prints it. libtorch numbers GPUs by
/// `CUDA_VISIBLE_DEVICES` and by speed; NVML and `nvidia-smi` number them by their place on the bus. Returns `None`
/// without a driver, or without this GPU.
pub fn gpu_uuid(index: usize) -> Option<String> {
    type Init = unsafe extern "C" fn(u32) -> i32;
    type Get = unsafe extern "C" fn(*mut i32, i32) -> i32;
    type Uuid = unsafe extern "C" fn(*mut [u8; 16], i32) -> i32;
    let index = i32::try_from(index).ok()?;
    let (mut device, mut uuid) = (0, [0; 16]);
    // SAFETY: the functions have these types in cuda.h since CUDA 11.4. Both pointers are to places of the size
    // that the functions fill.
    unsafe {
        let driver = libc::dlopen(c"libcuda.so.1".as_ptr(), libc::RTLD_NOW);
        if driver.is_null() {
            return None;
        }
        let function = |name: &CStr| {
            let found = libc::dlsym(driver, name.as_ptr());
            (!found.is_null()).then_some(found)
        };
        let init: Init = transmute(function(c"cuInit")?);
        let get: Get = transmute(function(c"cuDeviceGet")?);
        let of_device: Uuid = transmute(function(c"cuDeviceGetUuid_v2")?);
        let done = init(0) == 0
            && get(&raw mut device, index) == 0
            && of_device(&raw mut uuid, device) == 0;
        done.then(|| uuid_text(&uuid))
    }
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let groups = [0..4, 4..6, 6..8, 8..10, 10..16];
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let groups: Vec<String> = groups.into_iter().map(|group| hex(&uuid[group])).collect();
    format!("GPU-{}", groups.join("-"))
}

/// NVIDIA's libraries that `libtorch_cuda.so` or cuDNN open by their bare names, in the order in which they need
/// each other. PyTorch loads them from its packages at import. A program that does not preload them fails at its
/// first attention call.
const PRELOADED: [&str; 4] = [
    "libnvrtc-builtins.so.13.0",
    "libnvrtc.so.13",
    "libcublasLt.so.13",
    "libcublas.so.13",
];

fn load_cuda() -> Result<(), DeviceError> {
    static LOADED: OnceLock<Result<(), DeviceError>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            let folder = libtorch_folder();
            // In a Python environment, these libraries are beside torch/lib. If they are missing, the system's are
            // found by name.
            let packages = folder.join("../../nvidia/cu13/lib");
            for name in PRELOADED {
                let library = packages.join(name);
                if library.exists() {
                    let _ = load(&library);
                }
            }
            let library = folder.join("libtorch_cuda.so");
            load(&library).map_err(|reason| DeviceError::NoCudaLibrary { library, reason })?;
            if tch::utils::has_cudart() {
                Ok(())
            } else {
                Err(DeviceError::TooLate)
            }
        })
        .clone()
}

/// Loads a library permanently, with its symbols visible to all. If that fails, returns the loader's message.
fn load(library: &Path) -> Result<(), String> {
    let name = CString::new(library.as_os_str().as_encoded_bytes())
        .map_err(|_| "its path holds a NUL byte".to_owned())?;
    // SAFETY: the only NUL of the name is at its end. The library's initializers are libtorch's or NVIDIA's own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: after a failed dlopen on this thread, dlerror returns a string or null.
    Err(unsafe {
        let message = libc::dlerror();
        if message.is_null() {
            "no reason given".to_owned()
        } else {
            CStr::from_ptr(message).to_string_lossy().into_owned()
        }
    })
}

/// The folder of the libtorch that this process has loaded.
fn libtorch_folder() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .map(Path::new)
        .find(|path| path.ends_with("libtorch_cpu.so"))
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
    fn a_uuid_is_written_as_nvidia_smi_does() {
        let uuid = std::array::from_fn(|index| index as u8 * 16 + 1);
        assert_eq!(uuid_text(&uuid), "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1");
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() {
        // Use libtorch, so that it is loaded even if this is the only test that runs.
        let _ = tch::Tensor::from_slice(&[0.0_f32]);
        let error = parse_device("cuda:97").unwrap_err().to_string();
        assert!(
            error.contains("libtorch_cuda.so") || error.contains("libtorch sees"),
            "{error}"
        );
    }
}
