//! Compiles kernels with NVRTC, which is opened when it is needed.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    ptr,
};

use libloading::{Library, Symbol};

use crate::{CudaError, Source};

type Program = *mut c_void;
type OfProgram = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Read = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// The compiler of CUDA C++.
#[derive(Debug)]
pub struct Nvrtc {
    library: Library,
    /// Its other part, which it opens by name.
    _builtins: Option<Library>,
}

/// The kernels of a source, compiled for an architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// The code for the GPU, as `cuModuleLoadData` takes it.
    pub cubin: Vec<u8>,
    /// What the compiler says: warnings, and the registers and the memory of each kernel.
    pub log: String,
}

impl Nvrtc {
    /// Opens `libnvrtc.so.13`, or another version of it, and the library with its built-ins beside it.
    ///
    /// # Errors
    /// If a library cannot be loaded.
    pub fn open(path: &Path) -> Result<Self, CudaError> {
        // SAFETY: NVIDIA's libraries have no initialization that could do harm.
        let open = |path: &Path| unsafe { Library::new(path) };
        // Loaded already, it is found by its name, whatever LD_LIBRARY_PATH says.
        let beside = path.parent().and_then(|folder| folder.read_dir().ok());
        let names = beside.into_iter().flatten().flatten();
        let mut builtins = names.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libnvrtc-builtins.so")
        });
        let builtins = builtins.next();
        Ok(Self {
            _builtins: builtins.as_deref().map(open).transpose()?,
            library: open(path)?,
        })
    }

    /// Compiles the kernels of a source for an architecture, such as `sm_90`.
    ///
    /// # Errors
    /// If the library lacks a function, or if the source does not compile.
    pub fn compile(&self, source: Source, architecture: &str) -> Result<Compiled, CudaError> {
        let failed = |code, log: String| CudaError::Compile {
            source_name: source.name(),
            architecture: architecture.to_owned(),
            what: self.describe(code),
            log,
        };
        let options = [
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".to_owned(),
            // Products and sums round as the source says, as on the CPU.
            "--fmad=false".to_owned(),
            "--ptxas-options=-v".to_owned(),
        ];
        let text = |text: String| CString::new(text).unwrap_or_default();
        let options = options.map(text);
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let (code, name) = (text(source.text()), text(source.name().to_owned()));
        let mut program: Program = ptr::null_mut();
        // SAFETY: the signatures are those of nvrtc.h, and the strings outlive the calls.
        unsafe {
            let create: Symbol<
                unsafe extern "C" fn(
                    *mut Program,
                    *const c_char,
                    *const c_char,
                    c_int,
                    *const *const c_char,
                    *const *const c_char,
                ) -> c_int,
            > = self.library.get(b"nvrtcCreateProgram")?;
            let none = ptr::null();
            match create(&mut program, code.as_ptr(), name.as_ptr(), 0, none, none) {
                0 => {}
                code => return Err(failed(code, String::new())),
            }
        }
        let compiled = self.compile_program(program, &options, failed);
        // SAFETY: the signature is that of nvrtc.h. Nothing uses the program afterwards.
        unsafe {
            let destroy: Symbol<unsafe extern "C" fn(*mut Program) -> c_int> =
                self.library.get(b"nvrtcDestroyProgram")?;
            destroy(&mut program);
        }
        compiled
    }

    fn compile_program(
        &self,
        program: Program,
        options: &[*const c_char],
        failed: impl Fn(c_int, String) -> CudaError,
    ) -> Result<Compiled, CudaError> {
        let count = c_int::try_from(options.len()).unwrap_or_default();
        // SAFETY: the signature is that of nvrtc.h, and the options are as many as the count says.
        let code = unsafe {
            let compile: Symbol<
                unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
            > = self.library.get(b"nvrtcCompileProgram")?;
            compile(program, count, options.as_ptr())
        };
        let log = self.read(program, b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog")?;
        let log = String::from_utf8_lossy(&log);
        let log = log.trim_end_matches(['\0', '\n']).to_owned();
        if code != 0 {
            return Err(failed(code, log));
        }
        let cubin = self.read(program, b"nvrtcGetCUBINSize", b"nvrtcGetCUBIN")?;
        Ok(Compiled { cubin, log })
    }

    /// Reads a result of a program by the functions that return its size and its bytes; nothing if they fail.
    fn read(&self, program: Program, size: &[u8], bytes: &[u8]) -> Result<Vec<u8>, CudaError> {
        // SAFETY: the signatures are those of nvrtc.h, and the buffer has the size that the library asks for.
        unsafe {
            let (size, read): (Symbol<OfProgram>, Symbol<Read>) =
                (self.library.get(size)?, self.library.get(bytes)?);
            let mut count = 0;
            if size(program, &mut count) != 0 {
                return Ok(Vec::new());
            }
            let mut buffer = vec![0_u8; count];
            read(program, buffer.as_mut_ptr().cast());
            Ok(buffer)
        }
    }

    /// NVRTC's name of an error.
    fn describe(&self, code: c_int) -> String {
        // SAFETY: the signature is that of nvrtc.h, and the text is static.
        unsafe {
            let name: Result<Symbol<unsafe extern "C" fn(c_int) -> *const c_char>, _> =
                self.library.get(b"nvrtcGetErrorString");
            match name {
                Ok(name) => CStr::from_ptr(name(code)).to_string_lossy().into_owned(),
                Err(_) => format!("error {code}"),
            }
        }
    }
}
