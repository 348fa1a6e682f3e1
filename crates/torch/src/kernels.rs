//! Launches the CUDA kernels of `ddk-cuda` on the calling thread's stream.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    env,
    rc::Rc,
    sync::{Mutex, PoisonError},
};

use ddk_cuda::{CudaError, Kernels, Launch, Source};
use tch::{Device, Kind, TchError, Tensor};

use crate::{TorchError, current_stream};

/// If set to 0, GPUs compute with libtorch's operations alone.
const SWITCH: &str = "DDK_CUDA_KERNELS";

type Launcher = Rc<dyn Fn(Source, &Launch) -> Result<(), CudaError>>;

thread_local! {
    static LAUNCHER: RefCell<Option<Launcher>> = const { RefCell::new(None) };
    static CHECKS: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether to compute with the kernels of a source on a device.
///
/// The first question about a GPU compiles and loads the kernels, and runs `check`, which compares them with libtorch's
/// operations. If any of this fails, DDK warns once and does not use them on this GPU.
pub fn has_kernels(
    device: Device,
    source: Source,
    check: impl FnOnce() -> Result<(), TchError>,
) -> bool {
    /// By the number of the GPU and the name of the source.
    static USABLE: Mutex<BTreeMap<(usize, &str), bool>> = Mutex::new(BTreeMap::new());
    if CHECKS.get() || LAUNCHER.with_borrow(Option::is_some) {
        return true;
    }
    let Device::Cuda(index) = device else {
        return false;
    };
    // Other threads wait for the check, so that all of them compute the same way.
    let mut usable = USABLE.lock().unwrap_or_else(PoisonError::into_inner);
    *usable.entry((index, source.name())).or_insert_with(|| {
        if env::var_os(SWITCH).is_some_and(|value| value == "0") {
            return false;
        }
        let usable = prepare(device, index, source).and_then(|()| {
            let _checking = Checking::begin();
            Ok(check()?)
        });
        if let Err(error) = &usable {
            tracing::warn!(
                source = source.name(),
                gpu = index,
                %error,
                "cannot use these CUDA kernels; computing with libtorch's operations"
            );
        }
        usable.is_ok()
    })
}

/// Whether two tensors have the same size, and differ by at most `tolerance` of the largest expected number. NaN
/// differs from everything. For the check of [`has_kernels`].
///
/// # Errors
/// If libtorch fails.
pub fn are_near(found: &Tensor, expected: &Tensor, tolerance: f64) -> Result<bool, TchError> {
    if found.size() != expected.size() || found.kind() != expected.kind() {
        return Ok(false);
    }
    let largest = |numbers: &Tensor| {
        let numbers = numbers.detach().f_to_kind(Kind::Double)?;
        numbers.f_abs()?.f_max()?.f_double_value(&[])
    };
    Ok(largest(&found.f_sub(expected)?)? <= tolerance * largest(expected)?)
}

/// Marks the calling thread as the one that checks kernels, also if the check panics.
struct Checking;

impl Checking {
    fn begin() -> Self {
        CHECKS.set(true);
        Self
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        CHECKS.set(false);
    }
}

/// Starts kernels on the calling thread's stream of a device, one after the other, and does not wait for them.
///
/// # Errors
/// If a kernel cannot be compiled or launched, or if an earlier one has failed.
///
/// # Safety
/// The arguments are those of the kernels, in number and type. Addresses are those of tensors on the device. Nothing
/// else uses what the kernels write, and nothing else writes what they read, before the stream has run them.
pub unsafe fn launch(device: Device, source: Source, launches: &[Launch]) -> Result<(), TchError> {
    let launcher = LAUNCHER.with_borrow(Option::clone);
    let launched = match (launcher, device) {
        (Some(launcher), _) => launches
            .iter()
            .try_for_each(|launch| launcher(source, launch))
            .map_err(|error| TorchError::Other(error.to_string())),
        (None, Device::Cuda(index)) => {
            // SAFETY: the caller makes the same promises.
            unsafe { on_gpu(device, index, source, launches) }
        }
        (None, _) => Err(TorchError::Other(format!("{device:?} runs no kernels"))),
    };
    launched.map_err(|error| TchError::Torch(error.to_string()))
}

/// Runs `work` on the calling thread with kernels that `launcher` runs, whatever the device. For tests without a GPU
/// ([`ddk_cuda::Twin`]).
pub fn with_kernels<T>(
    launcher: impl Fn(Source, &Launch) -> Result<(), CudaError> + 'static,
    work: impl FnOnce() -> T,
) -> T {
    struct Restore(Option<Launcher>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LAUNCHER.set(self.0.take());
        }
    }
    let _restore = Restore(LAUNCHER.replace(Some(Rc::new(launcher))));
    work()
}

/// Compiles and loads the kernels of a source on a GPU.
fn prepare(device: Device, index: usize, source: Source) -> Result<(), TorchError> {
    // The driver needs the context that libtorch creates at its first work on the GPU.
    drop(Tensor::f_zeros([1], (Kind::Float, device))?);
    let kernels = kernels()?;
    let prepared = kernels
        .driver()
        .on_device(number(index), || kernels.prepare(source));
    prepared.and_then(|prepared| prepared).map_err(failed)
}

/// # Safety
/// As for [`launch`].
unsafe fn on_gpu(
    device: Device,
    index: usize,
    source: Source,
    launches: &[Launch],
) -> Result<(), TorchError> {
    let (kernels, stream) = (kernels()?, current_stream(device)?);
    let all = || {
        launches
            .iter()
            // SAFETY: the stream is of the context that is current here. The caller promises the rest.
            .try_for_each(|launch| unsafe { kernels.launch(source, launch, stream) })
    };
    let launched = kernels.driver().on_device(number(index), all);
    launched.and_then(|launched| launched).map_err(failed)
}

fn kernels() -> Result<&'static Kernels, TorchError> {
    Kernels::of_process(None).map_err(|error| TorchError::Other(error.to_string()))
}

fn number(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

/// Classifies an error by its text, as libtorch's.
fn failed(error: CudaError) -> TorchError {
    TchError::Torch(error.to_string()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_near_unless_they_are_not_finite() {
        let expected = Tensor::from_slice(&[1.0_f32, -4.0]);
        for (found, near) in [
            ([1.0_f32, -4.00001], true),
            ([1.0, -4.1], false),
            ([f32::NAN, -4.0], false),
        ] {
            let found = Tensor::from_slice(&found);
            assert_eq!(are_near(&found, &expected, 1e-5).unwrap(), near);
        }
        let short = Tensor::from_slice(&[1.0_f32]);
        assert!(!are_near(&short, &expected, 1.0).unwrap());
    }

    #[test]
    fn a_cpu_has_no_kernels_unless_a_test_runs_them() {
        let none = || panic!("there is nothing to check");
        assert!(!has_kernels(Device::Cpu, Source::Loss, none));
        // SAFETY: nothing is launched.
        let error = unsafe { launch(Device::Cpu, Source::Loss, &[]) }.unwrap_err();
        assert!(error.to_string().contains("runs no kernels"), "{error}");
        let seen = Rc::new(Cell::new(0));
        let count = Rc::clone(&seen);
        let launcher = move |_, launch: &Launch| {
            count.set(count.get() + launch.blocks);
            Ok(())
        };
        with_kernels(launcher, || {
            assert!(has_kernels(Device::Cpu, Source::Loss, none));
            let launch_of = |blocks| Launch {
                kernel: "none".to_owned(),
                blocks,
                threads: 32,
                arguments: Vec::new(),
            };
            let both = [launch_of(2), launch_of(3)];
            // SAFETY: the launcher ignores the arguments.
            unsafe { launch(Device::Cpu, Source::Loss, &both) }.unwrap();
        });
        assert_eq!(seen.get(), 5);
        assert!(!has_kernels(Device::Cpu, Source::Loss, none));
    }
}
