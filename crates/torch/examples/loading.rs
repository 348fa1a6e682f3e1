//! Shows what a process may do before CUDA's part of libtorch is loaded: nothing, a forward pass on the CPU, or a
//! backward pass. For `tools/gpu-loading`.
//!
//! usage: loading plain|forward|backward

use std::{
    fs,
    io::{Result, Write, stdout},
    process::ExitCode,
};

use ddk_torch::parse_device;
use tch::{Device, Kind, Tensor};

fn main() -> Result<ExitCode> {
    let before = std::env::args().nth(1).unwrap_or_default();
    let numbers = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    match before.as_str() {
        "plain" => {}
        "forward" => drop(numbers.exp().sum(Kind::Float)),
        "backward" => numbers.exp().sum(Kind::Float).backward(),
        _ => {
            writeln!(stdout(), "usage: loading plain|forward|backward")?;
            return Ok(ExitCode::from(2));
        }
    }
    let device = parse_device("cuda:0");
    let said = device.map_or_else(|error| error.to_string(), |device| format!("{device:?}"));
    writeln!(stdout(), "{before}: {said}")?;
    // Libraries loaded with it, by the names that cuDNN opens.
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for name in ["libnvrtc-builtins.so", "libnvrtc.so", "libcublasLt.so"] {
        let loaded = maps.contains(&format!("/{name}"));
        writeln!(
            stdout(),
            "{before}: {name} is {}",
            if loaded { "loaded" } else { "not loaded" }
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
