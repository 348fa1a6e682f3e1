//! The C functions of NCCL and of the CUDA runtime, looked up by name. Nothing is linked, so that the program also runs
//! without GPUs.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem::transmute,
};

use ddk_torch::current_stream;
use tch::Device;

use crate::DistributedError;

/// NCCL's result codes that need more than a message.
pub(super) mod code {
    pub(crate) const SUCCESS: i32 = 0;
    pub(crate) const REMOTE_ERROR: i32 = 6;
    pub(crate) const IN_PROGRESS: i32 = 7;
    /// CUDA's `cudaErrorNotReady`.
    pub(crate) const NOT_READY: i32 = 600;
}

/// NCCL's number for bytes.
pub(super) const UINT8: c_int = 1;

/// What all ranks of a communicator share.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// NCCL's `ncclConfig_t` of release 2.14, the first that has it. Later releases take it, by `size` and `version`, and
/// choose the rest.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Config {
    pub(super) size: usize,
    pub(super) magic: u32,
    pub(super) version: u32,
    pub(super) blocking: c_int,
    /// The place of `cgaClusterSize`, which came with release 2.17.
    unset: c_int,
}

impl Config {
    /// Calls return at once, so that this process can stop waiting for a rank that is gone.
    pub(super) fn non_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21400,
            blocking: 0,
            // `NCCL_CONFIG_UNDEF_INT`.
            unset: c_int::MIN,
        }
    }
}

/// What the loader finds by a name.
type Symbol = *mut c_void;

pub(super) type Comm = *mut c_void;
pub(super) type Stream = *mut c_void;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> i32;
type InitRank = unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int, *mut Config) -> i32;
type OfComm = unsafe extern "C" fn(Comm) -> i32;
type AsyncError = unsafe extern "C" fn(Comm, *mut i32) -> i32;
type LastError = unsafe extern "C" fn(Comm) -> *const c_char;
type ErrorString = unsafe extern "C" fn(i32) -> *const c_char;
type PlainCall = unsafe extern "C" fn() -> i32;
type Send = unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Comm, Stream) -> i32;
type Receive = unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Comm, Stream) -> i32;
type Collective =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> i32;
type GetDevice = unsafe extern "C" fn(*mut c_int) -> i32;
type SetDevice = unsafe extern "C" fn(c_int) -> i32;
type StreamQuery = unsafe extern "C" fn(Stream) -> i32;

/// The functions that a communicator needs. Tests replace them.
#[derive(Debug, Clone)]
pub(crate) struct Functions {
    pub(super) get_unique_id: GetUniqueId,
    pub(super) init_rank: InitRank,
    pub(super) finalize: OfComm,
    pub(super) destroy: OfComm,
    pub(super) abort: OfComm,
    pub(super) async_error: AsyncError,
    pub(super) last_error: LastError,
    pub(super) error_string: ErrorString,
    pub(super) group_start: PlainCall,
    pub(super) group_end: PlainCall,
    pub(super) send: Send,
    pub(super) receive: Receive,
    pub(super) all_gather: Collective,
    /// Since NCCL 2.28. Before, a group of sends and receives does the same.
    pub(super) all_to_all: Option<Collective>,
    pub(super) get_device: GetDevice,
    pub(super) set_device: SetDevice,
    pub(super) stream_query: StreamQuery,
    pub(super) clear_error: PlainCall,
    pub(super) cuda_error_string: ErrorString,
    pub(super) current_stream: fn(usize) -> Result<Stream, DistributedError>,
}

impl Functions {
    /// Looks up the functions. The PyTorch wheels of libtorch load NCCL with `libtorch_cuda.so`.
    ///
    /// # Errors
    /// If the process has no NCCL and cannot load it. The error says what to do.
    pub(crate) fn load() -> Result<Self, DistributedError> {
        let library = Library::open(c"libnccl.so.2", c"ncclGetUniqueId")?;
        let cuda = Library {
            handle: libc::RTLD_DEFAULT,
        };
        let of_nccl = |name| library.function(name);
        let of_cuda = |name| cuda.function(name);
        let all_to_all = library.find(c"ncclAlltoAll");
        // SAFETY: the types are those of nccl.h since release 2.14 (`ncclAlltoAll` since 2.28) and of
        // cuda_runtime_api.h.
        unsafe {
            Ok(Self {
                get_unique_id: transmute::<Symbol, GetUniqueId>(of_nccl(c"ncclGetUniqueId")?),
                init_rank: transmute::<Symbol, InitRank>(of_nccl(c"ncclCommInitRankConfig")?),
                finalize: transmute::<Symbol, OfComm>(of_nccl(c"ncclCommFinalize")?),
                destroy: transmute::<Symbol, OfComm>(of_nccl(c"ncclCommDestroy")?),
                abort: transmute::<Symbol, OfComm>(of_nccl(c"ncclCommAbort")?),
                async_error: transmute::<Symbol, AsyncError>(of_nccl(c"ncclCommGetAsyncError")?),
                last_error: transmute::<Symbol, LastError>(of_nccl(c"ncclGetLastError")?),
                error_string: transmute::<Symbol, ErrorString>(of_nccl(c"ncclGetErrorString")?),
                group_start: transmute::<Symbol, PlainCall>(of_nccl(c"ncclGroupStart")?),
                group_end: transmute::<Symbol, PlainCall>(of_nccl(c"ncclGroupEnd")?),
                send: transmute::<Symbol, Send>(of_nccl(c"ncclSend")?),
                receive: transmute::<Symbol, Receive>(of_nccl(c"ncclRecv")?),
                all_gather: transmute::<Symbol, Collective>(of_nccl(c"ncclAllGather")?),
                all_to_all: all_to_all.map(|found| transmute::<Symbol, Collective>(found)),
                get_device: transmute::<Symbol, GetDevice>(of_cuda(c"cudaGetDevice")?),
                set_device: transmute::<Symbol, SetDevice>(of_cuda(c"cudaSetDevice")?),
                stream_query: transmute::<Symbol, StreamQuery>(of_cuda(c"cudaStreamQuery")?),
                clear_error: transmute::<Symbol, PlainCall>(of_cuda(c"cudaGetLastError")?),
                cuda_error_string: transmute::<Symbol, ErrorString>(of_cuda(
                    c"cudaGetErrorString",
                )?),
                current_stream: |index| Ok(current_stream(Device::Cuda(index))?),
            })
        }
    }

    /// The message of an NCCL code, with what the communicator adds.
    pub(super) fn message(&self, result: i32, comm: Comm) -> String {
        // SAFETY: both functions return strings that NCCL keeps, or null.
        let (general, detail) = unsafe {
            let general = text((self.error_string)(result));
            (general, text((self.last_error)(comm)))
        };
        let detail = detail.lines().next().unwrap_or_default().trim();
        match detail {
            "" => format!("{general} (code {result})"),
            detail => format!("{general} (code {result}): {detail}"),
        }
    }

    pub(super) fn cuda_message(&self, result: i32) -> String {
        // SAFETY: CUDA returns a string that it keeps.
        let text = unsafe { text((self.cuda_error_string)(result)) };
        format!("CUDA: {text} (code {result})")
    }
}

/// # Safety
/// The pointer must be null or point to a string that ends with its NUL.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: the caller promises it.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_string_lossy().into_owned()
}

#[derive(Debug)]
struct Library {
    handle: *mut c_void,
}

impl Library {
    /// The process itself if it has a function already, otherwise the library of this name.
    fn open(name: &CStr, function: &CStr) -> Result<Self, DistributedError> {
        let process = Self {
            handle: libc::RTLD_DEFAULT,
        };
        if process.find(function).is_some() {
            return Ok(process);
        }
        // SAFETY: the name ends with its NUL. After a failed dlopen on this thread, dlerror returns a string or null.
        unsafe {
            let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
            if handle.is_null() {
                return Err(DistributedError::Nccl {
                    operation: format!("loading {}", name.to_string_lossy()),
                    reason: format!(
                        "{}: groups of GPUs need NCCL. Build with a PyTorch that has CUDA (LIBTORCH_USE_PYTORCH=1 make \
                         build), or install NCCL",
                        text(libc::dlerror())
                    ),
                });
            }
            Ok(Self { handle })
        }
    }

    fn find(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is the process or an open library, and the name ends with its NUL.
        let found = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    fn function(&self, name: &CStr) -> Result<*mut c_void, DistributedError> {
        self.find(name).ok_or_else(|| DistributedError::Nccl {
            operation: format!("looking up {}", name.to_string_lossy()),
            reason: "the function is missing: install NCCL 2.14 or later, and a libtorch with CUDA"
                .to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_is_an_error_that_says_what_to_do() {
        let absent = Library::open(c"libddk_absent.so.2", c"ddk_absent").unwrap_err();
        let message = absent.to_string();
        let start = "NCCL: loading libddk_absent.so.2 failed: libddk_absent.so.2: cannot open shared object file";
        assert!(message.starts_with(start), "{message}");
        assert!(
            message.contains("LIBTORCH_USE_PYTORCH=1 make build"),
            "{message}"
        );
    }

    #[test]
    fn a_library_without_the_functions_is_an_error_that_names_the_function() {
        // The C library is always there, and has no NCCL.
        let other = Library::open(c"libc.so.6", c"ddk_absent").unwrap();
        assert!(other.find(c"malloc").is_some());
        let message = other.function(c"ncclSend").unwrap_err().to_string();
        assert!(
            message.contains("ncclSend") && message.contains("2.14"),
            "{message}"
        );
    }
}
