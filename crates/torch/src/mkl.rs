//! Makes MKL use its AVX-512 kernels on processors that Intel did not make. libtorch's CPU matmuls run on MKL,
//! which checks the processor's maker before its features. On other makers' processors, MKL uses AVX2 kernels. If
//! the processor has full-width AVX-512 registers (Zen 5), these are half as fast as the AVX-512 kernels
//! (docs/performance.md has the measurement).
//!
//! libtorch exports the function that MKL calls for this, so a function of the same name in the program replaces
//! it. It answers "Intel" if AVX-512 is present, and the truth otherwise. MKL then checks the processor for each
//! instruction set that it uses.

use std::ffi::c_int;

/// If set to 1, MKL chooses as if DDK were not there.
const SWITCH: &str = "DDK_MKL_UNCHANGED";

/// MKL calls this once, when it chooses its kernels.
#[unsafe(no_mangle)]
extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
    c_int::from(is_intel() || (has_avx512() && !is_unchanged()))
}

/// Keeps the function in the program, although nothing in the program calls it.
#[used]
static KEPT: extern "C" fn() -> c_int = mkl_serv_intel_cpu_true;

/// Describes the kernels that MKL will use, for performance reports.
pub fn mkl_kernels() -> &'static str {
    match (has_avx512() && !is_unchanged(), is_intel()) {
        (true, _) => "AVX-512",
        (false, true) => "chosen by MKL",
        (false, false) => "chosen by MKL for another maker's processor",
    }
}

fn is_unchanged() -> bool {
    std::env::var_os(SWITCH).is_some_and(|value| value == "1")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let name = std::arch::x86_64::__cpuid(0);
    [name.ebx, name.edx, name.ecx]
        .map(u32::to_le_bytes)
        .concat()
        == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}
