//! Compiles every kernel for each architecture with NVRTC. It needs no GPU. `tools/gpu-kernels` runs it.
//!
//! usage: compile LIBNVRTC ARCHITECTURE...

#![allow(clippy::print_stdout)]

use std::{error::Error, path::Path};

use ddk_cuda::{Nvrtc, Source};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: compile LIBNVRTC ARCHITECTURE...";
    let nvrtc = Nvrtc::open(Path::new(&arguments.next().ok_or(usage)?))?;
    for architecture in arguments {
        for source in Source::ALL {
            let compiled = nvrtc.compile(source, &architecture)?;
            for kernel in source.kernels() {
                let name = kernel.as_bytes();
                let is_there = compiled.cubin.windows(name.len()).any(|part| part == name);
                if !is_there {
                    return Err(format!("{kernel} is not in the code for {architecture}").into());
                }
            }
            // Registers that do not fit go to memory, which is slow.
            let none = "0 bytes spill stores, 0 bytes spill loads";
            let is_bad = |line: &&str| {
                line.contains("warning") || line.contains("spill") && !line.contains(none)
            };
            if let Some(line) = compiled.log.lines().find(is_bad) {
                return Err(format!("{} for {architecture}: {line}", source.name()).into());
            }
            if std::env::var_os("VERBOSE").is_some() {
                println!("{}", compiled.log);
            }
            println!(
                "ok: {} for {architecture}: {} kernels, {} bytes",
                source.name(),
                source.kernels().len(),
                compiled.cubin.len()
            );
        }
    }
    Ok(())
}
