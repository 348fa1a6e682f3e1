//! Compiles the C++ that wraps c10d.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ddk_cpp::compile("ddk_distributed", "shim.cpp", &["cpp/stubs"])
}
