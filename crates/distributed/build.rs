//! Compiles the C++ that wraps c10d, against the headers of the libtorch that torch-sys links.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

/// A header that each libtorch with c10d has.
const HEADER: &str = "torch/csrc/distributed/c10d/TCPStore.hpp";

fn main() -> Result<(), Box<dyn Error>> {
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
        .include("cpp/stubs")
        .file("cpp/shim.cpp");
    // Unlike `include`, this keeps the warnings of libtorch's own headers out.
    for folder in [include.clone(), include.join("torch/csrc/api/include")] {
        build.flag("-isystem").flag(&folder);
    }
    if let Some(abi) = variable("LIBTORCH_CXX11_ABI") {
        build.define("_GLIBCXX_USE_CXX11_ABI", &*abi.to_string_lossy());
    }
    build.try_compile("ddk_distributed")?;
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
    let has_header = |folder: &&PathBuf| folder.join(HEADER).is_file();
    if let Some(found) = candidates.iter().find(has_header) {
        return Ok(found.clone());
    }
    Err(format!(
        "no {HEADER} in any of {candidates:?}: run tools/setup, or set LIBTORCH to a libtorch folder that has \
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
