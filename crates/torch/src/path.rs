//! Chooses the code path: the kernels of `ddk-kernel` on the CPU, or those of `ddk-cuda` and libtorch's operations on
//! GPUs, in shapes that suit GPUs.

use std::{cell::Cell, sync::OnceLock};

use tch::Device;

/// If set to 1, the CPU computes as a GPU would. For tests on machines without a GPU: it is slower and rounds
/// differently.
const SWITCH: &str = "DDK_GPU_PATH";

/// GPUs run matmuls fastest if sizes are multiples of this, and cuDNN builds a plan for each new length.
pub const TILE: i64 = 128;

thread_local! {
    static FORCED: Cell<bool> = const { Cell::new(false) };
}

/// Whether work on `device` takes the GPU path: it uses the kernels of `ddk-cuda` or libtorch's operations, not those
/// of `ddk-kernel`, and sizes are padded to multiples of [`TILE`].
pub fn takes_gpu_path(device: Device) -> bool {
    device != Device::Cpu || FORCED.get() || is_switched_on()
}

/// Runs `work` on the GPU path, whatever the device, as long as it stays on this thread.
pub fn on_gpu_path<T>(work: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            FORCED.set(self.0);
        }
    }
    let _restore = Restore(FORCED.replace(true));
    work()
}

/// Rounds `size` up to a multiple of [`TILE`] on the GPU path. Returns `size` itself otherwise.
pub fn padded(size: i64, device: Device) -> i64 {
    if takes_gpu_path(device) {
        (size + TILE - 1) / TILE * TILE
    } else {
        size
    }
}

fn is_switched_on() -> bool {
    static ON: OnceLock<bool> = OnceLock::new();
    *ON.get_or_init(|| std::env::var_os(SWITCH).is_some_and(|value| value == "1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_forced_for_a_piece_of_work_even_if_it_panics() {
        let plain = takes_gpu_path(Device::Cpu);
        assert!(on_gpu_path(|| takes_gpu_path(Device::Cpu)));
        assert_eq!(takes_gpu_path(Device::Cpu), plain);
        let _ = std::panic::catch_unwind(|| on_gpu_path(|| panic!("on purpose")));
        assert_eq!(takes_gpu_path(Device::Cpu), plain);
        assert!(takes_gpu_path(Device::Cuda(0)));
    }

    #[test]
    fn sizes_are_padded_to_tiles_on_gpus() {
        for (size, expected) in [(1, 128), (128, 128), (129, 256), (151_646, 151_680)] {
            assert_eq!(padded(size, Device::Cuda(0)), expected);
        }
    }
}
