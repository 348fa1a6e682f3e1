//! Compiles the kernels as C++, and makes their inputs.

use std::{
    ffi::c_void,
    fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::LazyLock,
};

use ddk_cuda::{Launch, Source};
use libloading::{Library, Symbol};

/// A source, compiled as C++.
pub(crate) struct Twin {
    library: Library,
    path: PathBuf,
}

impl Twin {
    fn compile(source: Source) -> Self {
        let twins = source
            .kernels()
            .iter()
            .map(|name| format!("TWIN({name})\n"));
        let text = format!(
            "#include \"twin.h\"\n{}{}",
            source.text(),
            twins.collect::<String>()
        );
        let path = compile(source.name(), &text);
        // SAFETY: the library has no initialization that could do harm.
        let library = unsafe { Library::new(&path).unwrap() };
        Self { library, path }
    }

    /// Where the library is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs a launch, and waits for it.
    pub(crate) fn run(&self, launch: &Launch) {
        let name = format!("twin_{}", launch.kernel);
        let places = launch.places();
        // SAFETY: the signature is that of TWIN, and the arguments are those of the kernel.
        unsafe {
            let kernel: Symbol<unsafe extern "C" fn(u32, u32, *const *const c_void)> =
                self.library.get(name.as_bytes()).unwrap();
            kernel(launch.blocks, launch.threads, places.as_ptr());
        }
    }
}

/// The twin of a source, compiled at the first call.
pub(crate) fn twin(source: Source) -> &'static Twin {
    static LOSS: LazyLock<Twin> = LazyLock::new(|| Twin::compile(Source::Loss));
    static LAYERS: LazyLock<Twin> = LazyLock::new(|| Twin::compile(Source::Layers));
    match source {
        Source::Loss => &LOSS,
        Source::Layers => &LAYERS,
    }
}

/// Compiles C++ to a library, and returns its path. `name` is that of the library among those of the tests.
pub(crate) fn compile(name: &str, text: &str) -> PathBuf {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("library.cpp");
    fs::write(&file, text).unwrap();
    let outputs = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = outputs.join(format!("{name}.so"));
    // Another test program may compile the same library now, or have it open.
    let unfinished = outputs.join(format!("{name}.{}", process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    // Without it, each fused operation is a call.
    let fma = std::arch::is_x86_feature_detected!("fma").then_some("-mfma");
    let output = Command::new(compiler)
        .args(["-std=c++20", "-O2", "-ffp-contract=off", "-pthread"])
        .args(fma)
        .args(["-Wall", "-Wextra", "-Werror"])
        .args(["-shared", "-fPIC", "-fvisibility=hidden"])
        .arg("-I")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels"))
        .arg(&file)
        .arg("-o")
        .arg(&unfinished)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&unfinished, &library).unwrap();
    library
}

/// Numbers of a normal distribution with the mean 0.
pub(crate) fn normal(what: &str, count: usize, spread: f64) -> Vec<f32> {
    let mut rng = ddk_order::stream(7, what, &[count as u64]);
    let numbers = (0..count).map(|_| spread * ddk_order::standard_normal(&mut rng));
    numbers.map(|x| x as f32).collect()
}
