//! Compiles the kernels as C++, and makes their inputs.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
};

use ddk_cuda::{Launch, Source, Twin, compile_cpp};

/// The twin of a source, compiled at the first call.
pub(crate) fn twin(source: Source) -> &'static Twin {
    static LOSS: LazyLock<Twin> = LazyLock::new(|| Twin::compile(Source::Loss, folder()).unwrap());
    static LAYERS: LazyLock<Twin> =
        LazyLock::new(|| Twin::compile(Source::Layers, folder()).unwrap());
    match source {
        Source::Loss => &LOSS,
        Source::Layers => &LAYERS,
    }
}

/// Runs a launch on the CPU.
pub(crate) fn run(source: Source, launch: &Launch) {
    // SAFETY: the tests pass arguments of the kernels, with addresses of vectors that they own.
    unsafe { twin(source).run(launch) }.unwrap();
}

/// Compiles C++ to a library, and returns its path.
pub(crate) fn compile(name: &str, text: &str) -> PathBuf {
    compile_cpp(name, text, folder()).unwrap()
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Numbers of a normal distribution with the mean 0.
pub(crate) fn normal(what: &str, count: usize, spread: f64) -> Vec<f32> {
    let mut rng = ddk_order::stream(7, what, &[count as u64]);
    let numbers = (0..count).map(|_| spread * ddk_order::standard_normal(&mut rng));
    numbers.map(|x| x as f32).collect()
}
