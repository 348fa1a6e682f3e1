//! Matrix products on the CPU are MKL's, inside libtorch. MKL asks for the processor's maker before it asks
//! what the processor can do: on one that is not Intel's it takes kernels for AVX2, at half the speed of
//! those for AVX-512 where the processor has full registers of that (Zen 5; docs/performance.md has the
//! measurement).
//!
//! libtorch exports the function that is asked, so one of the same name in the program is called in its
//! place. It says "Intel" where AVX-512 is there, and the truth elsewhere; MKL then asks the processor
//! for each instruction set that it uses.

use std::ffi::c_int;

/// Set to 1: MKL chooses as if DDK were not there.
const SWITCH: &str = "DDK_MKL_UNCHANGED";

/// Called by MKL once, when it chooses its kernels.
#[unsafe(no_mangle)]
extern "C" fn mkl_serv_intel_cpu_true() -> c_int {
    c_int::from(is_intel() || (has_avx512() && !is_unchanged()))
}

/// What keeps the function in the program although nothing of the program calls it.
#[used]
static KEPT: extern "C" fn() -> c_int = mkl_serv_intel_cpu_true;

/// The kernels that MKL is led to, in words; for reports of speed.
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
