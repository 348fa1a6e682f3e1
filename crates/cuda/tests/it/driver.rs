//! Launches kernels through a stand-in for CUDA's driver, which runs their twins on the CPU.

use std::{
    ffi::c_void,
    panic::{self, AssertUnwindSafe},
    path::Path,
    ptr,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ddk_cuda::{Chunk, CudaError, Driver, Dtype, Kernels, Launch, Norm, Source, losses, silu_mul};
use ddk_kernel::{Divergence, Loss, Values};

use crate::{
    compile::{normal, run, twin},
    stand_in::{StandIn, cubin},
};

const COLUMNS: usize = 33;

/// Three positions with logits of a student and a teacher.
#[derive(Clone)]
struct Positions {
    student: Vec<f32>,
    teacher: Vec<f32>,
    labels: [i64; 3],
    scales: [f32; 3],
    values: [Values; 3],
}

impl Positions {
    fn new() -> Self {
        Self {
            student: normal("student", 3 * COLUMNS, 2.0),
            teacher: normal("teacher", 3 * COLUMNS, 2.0),
            labels: [4, -100, 32],
            scales: [0.1, 0.2, 0.3],
            values: [Values::default(); 3],
        }
    }

    fn launch(&mut self) -> Launch {
        let chunk = Chunk {
            student: self.student.as_mut_ptr(),
            teacher: Some(self.teacher.as_ptr()),
            labels: self.labels.as_ptr(),
            scales: self.scales.as_ptr(),
            values: self.values.as_mut_ptr(),
            positions: 3,
            columns: COLUMNS as i32,
            teacher_ce: true,
        };
        let loss = Loss {
            divergence: Some(Divergence::Jsd { beta: 0.3 }),
            weight: 0.7,
            temperature: 2.0,
            factor: 4.0,
        };
        losses(&chunk, &loss)
    }

    /// What the twin makes of them.
    fn by_twin() -> Self {
        let mut positions = Self::new();
        run(Source::Loss, &positions.launch());
        positions
    }

    /// Checks that a kernel wrote what the twin writes, bit for bit.
    fn are(&self, expected: &Self) {
        assert_eq!(self.student, expected.student);
        for (got, expected) in self.values.iter().zip(&expected.values) {
            assert_eq!(got.ce.to_bits(), expected.ce.to_bits());
            assert_eq!(got.divergence.to_bits(), expected.divergence.to_bits());
            assert_eq!(got.teacher_ce.to_bits(), expected.teacher_ce.to_bits());
        }
    }
}

/// The fields of a failed call, and its text.
fn failed<T>(result: Result<T, CudaError>) -> (&'static str, String, i32, String) {
    let error = result.err().expect("the call fails");
    let text = error.to_string();
    match error {
        CudaError::Call {
            function,
            subject,
            code,
            ..
        } => (function, subject, code, text),
        error => panic!("{error:?}"),
    }
}

#[test]
fn a_library_that_is_missing_or_another_is_named() {
    let missing = Path::new("/nonexistent/libcuda.so.1");
    let error = Driver::open(missing).unwrap_err().to_string();
    assert!(error.starts_with("cannot load CUDA's driver: "), "{error}");
    assert!(error.contains("/nonexistent/libcuda.so.1"), "{error}");
    let error = Driver::open(twin(Source::Loss).path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("cuGetErrorName"), "{error}");
    let nvrtc = Path::new("/nonexistent/libnvrtc.so.13");
    let error = Kernels::open(&StandIn::new().path(), nvrtc).unwrap_err();
    assert!(error.to_string().contains("cannot load NVRTC"), "{error}");
    // This machine may have a driver.
    let of_process = || Kernels::of_process(Some(nvrtc)).unwrap_err();
    assert!(of_process().to_string().contains("cannot load"));
    assert!(ptr::eq(of_process(), of_process()), "it is opened once");
}

#[test]
fn a_thread_without_a_context_is_told_so() {
    let stand_in = StandIn::new();
    let driver = stand_in.driver();
    let error = driver.context().unwrap_err();
    assert!(matches!(error, CudaError::NoContext), "{error:?}");
    let kernels = stand_in.kernels(|_, _| panic!("nothing is compiled"));
    let error = kernels.prepare(Source::Loss).unwrap_err();
    assert!(matches!(error, CudaError::NoContext), "{error:?}");
    stand_in.make_current(Some(2));
    let context = driver.context().unwrap();
    assert_eq!(context.device(), 2);
    // CUDA_ERROR_NOT_INITIALIZED: libtorch has not used CUDA.
    stand_in.fail("cuCtxGetCurrent", 3);
    let error = driver.context().unwrap_err();
    assert!(matches!(error, CudaError::NoContext), "{error:?}");
    stand_in.fail("cuCtxGetDevice", 201);
    let (function, _, code, text) = failed(driver.context());
    assert_eq!((function, code), ("cuCtxGetDevice", 201));
    assert!(text.contains("CUDA_ERROR_INVALID_CONTEXT (201)"), "{text}");
}

#[test]
fn an_architecture_is_that_of_the_device() {
    let stand_in = StandIn::new();
    let driver = stand_in.driver();
    for (device, architecture) in [(0, "sm_90"), (1, "sm_90"), (2, "sm_103")] {
        stand_in.make_current(Some(device));
        let context = driver.context().unwrap();
        assert_eq!(driver.architecture(context).unwrap(), architecture);
    }
    stand_in.fail("cuDeviceGetAttribute", 101);
    let context = driver.context().unwrap();
    let (function, subject, ..) = failed(driver.architecture(context));
    assert_eq!(
        (function, subject.as_str()),
        ("cuDeviceGetAttribute", "cuda:2")
    );
}

#[test]
fn launched_kernels_write_what_their_twins_write() {
    let stand_in = StandIn::new();
    let kernels = stand_in.kernels(|_, _| {});
    stand_in.make_current(Some(0));
    let mut positions = Positions::new();
    let launch = positions.launch();
    // SAFETY: the stand-in runs the kernel before it returns, and the positions outlive that.
    unsafe { kernels.launch(Source::Loss, &launch, stand_in.stream(0)) }.unwrap();
    positions.are(&Positions::by_twin());

    // Arguments of every type, and a null.
    let (x, weight) = (normal("x", 96, 1.0), normal("weight", 32, 1.0));
    let [mut normed, mut gated, mut expected] = [[0.0_f32; 96]; 3];
    let norm = |out: &mut [f32; 96]| Norm {
        x: x.as_ptr().cast(),
        added: None,
        weight: weight.as_ptr().cast(),
        out: out.as_mut_ptr().cast(),
        rows: 3,
        width: 32,
        eps: 1e-5,
    };
    let launch = norm(&mut normed).launch(Dtype::F32);
    // SAFETY: as above, with the default stream.
    unsafe { kernels.launch(Source::Layers, &launch, ptr::null_mut()) }.unwrap();
    run(Source::Layers, &norm(&mut expected).launch(Dtype::F32));
    assert_eq!(normed, expected);
    let inputs = [x.as_ptr().cast(), normed.as_ptr().cast()];
    let gate = |out: &mut [f32; 96]| silu_mul(inputs, out.as_mut_ptr().cast(), 96, Dtype::F32);
    // SAFETY: as above.
    unsafe { kernels.launch(Source::Layers, &gate(&mut gated), ptr::null_mut()) }.unwrap();
    run(Source::Layers, &gate(&mut expected));
    assert_eq!(gated, expected);

    let mut elsewhere = Positions::new();
    let launch = elsewhere.launch();
    let stream = stand_in.stream(1);
    // SAFETY: as above.
    let start = || unsafe { kernels.launch(Source::Loss, &launch, stream) };
    failed(start());
    kernels.driver().on_device(1, start).unwrap().unwrap();
    elsewhere.are(&Positions::by_twin());
    let streams = [stand_in.stream(0), ptr::null_mut(), stream];
    let launches = streams.map(|stream| stand_in.launches(stream));
    assert_eq!(launches, [1, 2, 1]);
    let [losses, layers] = Source::ALL.map(|source| source.kernels().len() as u32);
    let looked_up = stand_in.calls("cuModuleGetFunction");
    assert_eq!(looked_up, 2 * losses + layers, "once per device");
}

#[test]
fn an_empty_grid_starts_nothing() {
    let stand_in = StandIn::new();
    let kernels = stand_in.kernels(|_, _| {});
    stand_in.make_current(Some(0));
    let mut launch = Positions::new().launch();
    launch.blocks = 0;
    // SAFETY: no kernel runs.
    unsafe { kernels.launch(Source::Loss, &launch, ptr::null_mut()) }.unwrap();
    assert_eq!(stand_in.calls("cuLaunchKernel"), 0);
}

#[test]
fn a_cubin_that_cannot_be_loaded_is_refused() {
    let stand_in = StandIn::new();
    let driver = stand_in.driver();
    stand_in.make_current(Some(0));
    // SAFETY: the stand-in reads until NUL. It does not see an empty cubin.
    let load = |source, cubin: &[u8]| unsafe { driver.load(source, cubin) };
    for cubin in [&b"not a cubin\0"[..], b""] {
        let (function, subject, code, _) = failed(load(Source::Loss, cubin));
        assert_eq!((function, code), ("cuModuleLoadData", 200));
        assert_eq!(subject, "loss.cu");
    }
    let (function, subject, code, _) = failed(load(Source::Loss, &cubin(Source::Layers)));
    assert_eq!((function, code), ("cuModuleGetFunction", 500));
    assert_eq!(subject, "ddk_cross_entropy");
}

#[test]
fn a_launch_that_fails_names_the_kernel_and_the_reason() {
    let stand_in = StandIn::new();
    let driver = stand_in.driver();
    stand_in.make_current(Some(0));
    // SAFETY: the cubin is that of the stand-in.
    let module = unsafe { driver.load(Source::Loss, &cubin(Source::Loss)) }.unwrap();
    let mut positions = Positions::new();
    let launch = positions.launch();
    // SAFETY: the stand-in checks what it gets before it runs a kernel.
    let start = |launch: &Launch, stream| unsafe { driver.launch(&module, launch, stream) };

    stand_in.fail("cuLaunchKernel", 719);
    let (function, subject, code, text) = failed(start(&launch, ptr::null_mut()));
    assert_eq!((function, code), ("cuLaunchKernel", 719));
    assert_eq!(subject, "ddk_jsd");
    let expected =
        "cuLaunchKernel failed for ddk_jsd: CUDA_ERROR_LAUNCH_FAILED (719), the stand-in says so";
    assert_eq!(text, expected);
    // A newer driver has errors that this one has no name for.
    stand_in.fail("cuLaunchKernel", 9999);
    let (.., text) = failed(start(&launch, ptr::null_mut()));
    assert!(text.contains("unknown error (9999)"), "{text}");

    let of_another_device: *mut c_void = stand_in.stream(1);
    let (.., code, _) = failed(start(&launch, of_another_device));
    assert_eq!(code, 400);
    let too_large = Launch {
        threads: 2048,
        ..launch.clone()
    };
    let (.., code, _) = failed(start(&too_large, ptr::null_mut()));
    assert_eq!(code, 1);
    let unknown = Launch {
        kernel: "ddk_rotate_f32".to_owned(),
        ..launch.clone()
    };
    let error = start(&unknown, ptr::null_mut()).unwrap_err().to_string();
    assert_eq!(error, "loss.cu has no kernel `ddk_rotate_f32`");
    stand_in.make_current(Some(1));
    let (.., code, _) = failed(start(&launch, ptr::null_mut()));
    assert_eq!(code, 201, "the module belongs to another context");
    positions.are(&Positions::new());
}

#[test]
fn work_on_another_device_has_its_context_and_leaves_no_trace() {
    let stand_in = StandIn::new();
    let driver = stand_in.driver();
    let device = || driver.context().map(|context| context.device()).ok();
    for before in [None, Some(0), Some(1)] {
        stand_in.make_current(before);
        let inside = driver.on_device(1, || (device(), stand_in.users(1)));
        let users = if before == Some(1) { 1 } else { 2 };
        assert_eq!(inside.unwrap(), (Some(1), users), "from {before:?}");
        assert_eq!((device(), stand_in.users(1)), (before, 1));
    }
    stand_in.make_current(Some(0));
    let nested = driver.on_device(1, || driver.on_device(2, device).unwrap());
    assert_eq!(nested.unwrap(), Some(2));
    let panics = || driver.on_device(1, || panic!("on purpose"));
    let panicked = panic::catch_unwind(AssertUnwindSafe(|| panics().is_ok()));
    assert!(panicked.is_err());
    assert_eq!((device(), stand_in.users(1)), (Some(0), 1));

    // Another user of a context would make it.
    stand_in.activate(1, false);
    let error = driver.on_device(1, || panic!("not reached")).unwrap_err();
    assert!(error.to_string().contains("cuda:1"), "{error}");
    assert!(matches!(error, CudaError::Unused(1)), "{error:?}");
    let (function, subject, code, _) = failed(driver.on_device(7, || ()));
    assert_eq!((function, code), ("cuDevicePrimaryCtxGetState", 101));
    assert_eq!(subject, "cuda:7");
    stand_in.fail("cuCtxPushCurrent_v2", 201);
    failed(driver.on_device(2, || ()));
    assert_eq!((device(), stand_in.users(2)), (Some(0), 1));
}

#[test]
fn threads_share_what_is_compiled_and_loaded() {
    let stand_in = StandIn::new();
    let compiled = Arc::new(Mutex::new(Vec::new()));
    let kernels = stand_in.kernels({
        let compiled = compiled.clone();
        move |source, architecture| {
            let entry = (source.name(), architecture.to_owned());
            compiled.lock().unwrap().push(entry);
        }
    });
    let streams = [0, 1, 2].map(|device| stand_in.stream(device).expose_provenance());
    let expected = Positions::by_twin();
    let start = Barrier::new(6);
    thread::scope(|scope| {
        for thread in 0..6 {
            let (stand_in, kernels, start, expected) = (&stand_in, &kernels, &start, &expected);
            scope.spawn(move || {
                let device = thread % 3;
                stand_in.make_current(Some(device as i32));
                start.wait();
                for _ in 0..3 {
                    let mut positions = Positions::new();
                    let launch = positions.launch();
                    let stream = ptr::with_exposed_provenance_mut(streams[device]);
                    // SAFETY: the stand-in runs the kernel before it returns.
                    unsafe { kernels.launch(Source::Loss, &launch, stream) }.unwrap();
                    positions.are(expected);
                }
                kernels.prepare(Source::Layers).unwrap();
            });
        }
    });
    let mut compiled = compiled.lock().unwrap().clone();
    compiled.sort();
    let each = ["layers.cu", "loss.cu"].map(|name| ["sm_103", "sm_90"].map(|of| (name, of.into())));
    assert_eq!(compiled, each.concat());
    assert_eq!(stand_in.calls("cuModuleLoadData"), 6);
    assert_eq!(stand_in.calls("cuLaunchKernel"), 18);
}

#[test]
fn a_failure_to_compile_or_load_is_not_kept() {
    let stand_in = StandIn::new();
    stand_in.make_current(Some(0));
    let is_broken = Arc::new(AtomicBool::new(true));
    let compile = {
        let is_broken = is_broken.clone();
        move |source: Source, architecture: &str| {
            if is_broken.load(Ordering::Relaxed) {
                return Err(CudaError::Compile {
                    source_name: source.name(),
                    architecture: architecture.to_owned(),
                    what: "NVRTC_ERROR_COMPILATION".to_owned(),
                    log: "no".to_owned(),
                });
            }
            Ok(cubin(source))
        }
    };
    // SAFETY: the cubins are those of the stand-in.
    let kernels = unsafe { Kernels::with_compiler(stand_in.driver(), compile) };
    let error = kernels.prepare(Source::Loss).unwrap_err().to_string();
    assert!(
        error.contains("cannot compile loss.cu for sm_90"),
        "{error}"
    );
    is_broken.store(false, Ordering::Relaxed);
    stand_in.fail("cuModuleLoadData", 2);
    let (function, _, code, _) = failed(kernels.prepare(Source::Loss));
    assert_eq!((function, code), ("cuModuleLoadData", 2));
    kernels.prepare(Source::Loss).unwrap();
    kernels.prepare(Source::Loss).unwrap();
    assert_eq!(stand_in.calls("cuModuleLoadData"), 2);
}
