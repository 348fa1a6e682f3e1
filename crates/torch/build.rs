//! Compiles the node of the autograd graph, for which libtorch has no C interface.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ddk_cpp::compile("ddk_torch", "node.cpp", &[])
}
