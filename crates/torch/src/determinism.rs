//! Makes GPU results bitwise reproducible. CPU results always are.

use std::{
    env,
    ffi::{CStr, c_void},
    mem::transmute,
};

use crate::TorchError;

/// The release of libtorch that tch and torch-sys require.
pub const VERSION: &str = "2.11.0";

/// cuBLAS adds in the same order each time only if its workspace is set. On a Hopper GPU, libtorch uses eight
/// buffers of 4 MiB anyway, so this costs nothing there.
const CUBLAS_WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

/// Workspaces that fix the order of cuBLAS's sums. The first is the default.
const DETERMINISTIC_WORKSPACES: [&str; 2] = [":4096:8", ":16:8"];

/// Sets cuBLAS's workspace unless the environment sets one. Call it before the first thread starts.
pub fn prepare_cublas() {
    if env::var_os(CUBLAS_WORKSPACE).is_none() {
        // SAFETY: no other thread reads the environment yet.
        unsafe { env::set_var(CUBLAS_WORKSPACE, DETERMINISTIC_WORKSPACES[0]) };
    }
}

/// Makes libtorch choose algorithms that give the same bits each time, for the whole process. The backward pass of
/// flash attention then adds in one order, and cuDNN's attention is not used. From then on, an operation without
/// such an algorithm fails.
///
/// # Errors
/// If libtorch is of another release, or if the environment sets a workspace of cuBLAS that does not fix the order
/// of its sums.
pub fn make_deterministic() -> Result<(), TorchError> {
    type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
    type SetDeterministic = unsafe extern "C" fn(*mut c_void, bool, bool);
    type SetFill = unsafe extern "C" fn(*mut c_void, bool);
    if let Ok(set) = env::var(CUBLAS_WORKSPACE)
        && !DETERMINISTIC_WORKSPACES.contains(&&*set)
    {
        return Err(TorchError::Other(format!(
            "{CUBLAS_WORKSPACE} is \"{set}\" in the environment, expected \"{}\" for deterministic runs: remove it, \
             or set it so",
            DETERMINISTIC_WORKSPACES[0]
        )));
    }
    // SAFETY: the names are the C++ symbols of `at::globalContext()` and of two methods of `at::Context` in
    // ATen/Context.h of this release. A method takes its object first.
    unsafe {
        let context: GlobalContext = transmute(symbol(c"_ZN2at13globalContextEv")?);
        let set: SetDeterministic =
            transmute(symbol(c"_ZN2at7Context26setDeterministicAlgorithmsEbb")?);
        let set_fill: SetFill = transmute(symbol(
            c"_ZN2at7Context39setDeterministicFillUninitializedMemoryEb",
        )?);
        // With "warn only", attention would continue as before.
        set(context(), true, false);
        // New memory is written before it is read, so filling it first would only cost time.
        set_fill(context(), false);
    }
    Ok(())
}

/// Looks up a function of the libtorch in use by its name.
pub(crate) fn symbol(name: &CStr) -> Result<*mut c_void, TorchError> {
    // SAFETY: the name ends with its NUL.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        Err(TorchError::Other(format!(
            "the libtorch in use has no function {}: build with PyTorch {}",
            name.to_string_lossy(),
            VERSION
        )))
    } else {
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the flags back from libtorch, because attention checks both.
    #[test]
    fn libtorch_takes_the_flags() {
        type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
        type Get = unsafe extern "C" fn(*const c_void) -> bool;
        make_deterministic().unwrap();
        // SAFETY: as in `make_deterministic`; both getters are const methods without arguments.
        unsafe {
            let context: GlobalContext = transmute(symbol(c"_ZN2at13globalContextEv").unwrap());
            let flag = |name| {
                let get: Get = transmute(symbol(name).unwrap());
                get(context())
            };
            assert!(flag(c"_ZNK2at7Context23deterministicAlgorithmsEv"));
            assert!(!flag(c"_ZNK2at7Context31deterministicAlgorithmsWarnOnlyEv"));
        }
    }
}
