//! For build scripts: compiles C++ against the headers of the libtorch that torch-sys links. A crate that uses it must
//! depend on torch-sys, whose build script says where libtorch is.

// Cargo reads the standard output of a build script.
#![allow(clippy::print_stdout)]

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

/// Headers that each libtorch has, c10d included.
const HEADERS: [&str; 2] = [
    "torch/csrc/autograd/function.h",
    "torch/csrc/distributed/c10d/TCPStore.hpp",
];

/// Compiles `cpp/FILE` of the calling crate into a static library. `includes`: more folders with headers.
///
/// # Errors
/// If there are no headers of libtorch, or if the compiler fails.
pub fn compile(library: &str, file: &str, includes: &[&str]) -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=cpp");
    let include = include_folder()?;
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .pic(true)
        .warnings(true)
        .extra_warnings(true)
        .includes(includes)
        .file(Path::new("cpp").join(file));
    // Unlike `include`, this keeps the warnings of libtorch's own headers out.
    for folder in [include.clone(), include.join("torch/csrc/api/include")] {
        build.flag("-isystem").flag(&folder);
    }
    if let Some(abi) = variable("LIBTORCH_CXX11_ABI") {
        build.define("_GLIBCXX_USE_CXX11_ABI", &*abi.to_string_lossy());
    }
    build.try_compile(library)?;
    Ok(())
}

/// The folder of libtorch's headers. torch-sys finds libtorch by the same variables, in the same order, and reports
/// its lib folder in `DEP_TCH_LIBTORCH_LIB`; `[target.TRIPLE.tch]` in `.cargo/config.toml` may do so in its place.
fn include_folder() -> Result<PathBuf, Box<dyn Error>> {
    let uses_pytorch = variable("LIBTORCH_USE_PYTORCH").is_some();
    let beside = |lib: PathBuf| lib.parent().map(|folder| folder.join("include"));
    let linked = variable("DEP_TCH_LIBTORCH_LIB").and_then(|lib| beside(lib.into()));
    let under = |name| variable(name).map(|folder| Path::new(&folder).join("include"));
    let candidates = [
        under("LIBTORCH_INCLUDE").filter(|_| !uses_pytorch),
        linked,
        pytorch().filter(|_| uses_pytorch),
        under("LIBTORCH"),
        Some(PathBuf::from("/usr/include")),
    ];
    let candidates: Vec<PathBuf> = candidates.into_iter().flatten().collect();
    let has_headers =
        |folder: &&PathBuf| HEADERS.iter().all(|header| folder.join(header).is_file());
    if let Some(found) = candidates.iter().find(has_headers) {
        return Ok(found.clone());
    }
    Err(format!(
        "no {HEADERS:?} in any of {candidates:?}: run tools/setup, or set LIBTORCH to a libtorch folder that has \
         include/ and lib/"
    )
    .into())
}

/// The headers of the PyTorch of the active Python, chosen as torch-sys does.
fn pytorch() -> Option<PathBuf> {
    let python = if variable("VIRTUAL_ENV").is_some() {
        "python"
    } else {
        "python3"
    };
    let print = "import importlib.util; print(importlib.util.find_spec('torch').submodule_search_locations[0])";
    let output = Command::new(python).args(["-c", print]).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = folder.trim();
    (!folder.is_empty()).then(|| Path::new(folder).join("include"))
}

fn variable(name: &str) -> Option<std::ffi::OsString> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var_os(name)
}
