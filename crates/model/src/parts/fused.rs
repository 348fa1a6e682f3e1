//! Calls the one-pass kernels of `ddk-kernel` for frozen models, in fp32 on the CPU. Each function returns `None`
//! or `false` if it cannot handle its inputs: another device or dtype, shapes that do not fit, or tensors that
//! share memory. The caller then uses libtorch's operations, whose errors say what is wrong.

use ddk_torch::{are_apart, as_slice, as_slice_mut, threads};
use tch::{TchError, Tensor};

use super::Tables;

/// Computes the root mean square norm of the last dimension.
///
/// # Safety
/// No thread may write to the storage of `x` or `weight` during the call.
pub(super) unsafe fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<Option<Tensor>, TchError> {
    let width = weight.size();
    if x.requires_grad()
        || weight.requires_grad()
        || width.len() != 1
        || !x.size().ends_with(&width)
    {
        return Ok(None);
    }
    let mut out = x.f_empty_like()?;
    // SAFETY: the caller promises that no thread writes to the inputs. The output is new, so it has no other
    // handle.
    let slices = unsafe { (as_slice(x), as_slice(weight), as_slice_mut(&mut out)) };
    let (Some(x), Some(weight), Some(normed)) = slices else {
        return Ok(None);
    };
    ddk_kernel::rms_norm(x, weight, eps as f32, normed, threads());
    Ok(Some(out))
}

/// Computes `silu(gate) * up` in place of the gate.
///
/// # Safety
/// Nothing else may use the storage of the gate during the call, and no thread may write to that of `up`.
pub(super) unsafe fn silu_mul(gate: &mut Tensor, up: &Tensor) -> bool {
    let fits = gate.size() == up.size() && are_apart(&[gate, up]);
    if gate.requires_grad() || up.requires_grad() || !fits {
        return false;
    }
    // SAFETY: the two do not overlap. The caller promises the rest.
    let (Some(gate), Some(up)) = (unsafe { (as_slice_mut(gate), as_slice(up)) }) else {
        return false;
    };
    ddk_kernel::silu_mul(gate, up, threads());
    true
}

/// Rotates `x` `[B, H, T, E]` in place if its layout in memory is `[B, T, H, E]`.
///
/// # Safety
/// Nothing else may use the storage of `x` during the call, and no thread may write to that of the tables.
pub(super) unsafe fn rotate(x: &Tensor, (cos, sin): &Tables) -> Result<bool, TchError> {
    let &[_, heads, time, width] = &x.size()[..] else {
        return Ok(false);
    };
    let fits = |table: &Tensor| table.size() == [time, width];
    if x.requires_grad() || !fits(cos) || !fits(sin) || width % 2 != 0 {
        return Ok(false);
    }
    let mut by_position = x.f_transpose(1, 2)?;
    if !are_apart(&[&by_position, cos]) || !are_apart(&[&by_position, sin]) {
        return Ok(false);
    }
    // SAFETY: `x` is not read in between, and it does not overlap the tables, which are only read. The caller
    // promises the rest.
    let slices = unsafe { (as_slice_mut(&mut by_position), as_slice(cos), as_slice(sin)) };
    let (Some(x), Some(cos), Some(sin)) = slices else {
        return Ok(false);
    };
    ddk_kernel::rotate(x, heads as usize, cos, sin, width as usize, threads());
    Ok(true)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn zeros(size: &[i64]) -> Tensor {
        Tensor::zeros(size, (Kind::Float, Device::Cpu))
    }

    /// Inputs that do not fit are left to libtorch, and nothing is written.
    #[test]
    fn shapes_that_do_not_fit_and_shared_memory_are_left_to_libtorch() {
        let whole = Tensor::ones([4, 6], (Kind::Float, Device::Cpu));
        let same =
            |tensor: &Tensor| tensor.equal(&Tensor::ones([4, 6], (Kind::Float, Device::Cpu)));
        // SAFETY: there is one thread, and no other handle is used during a call.
        unsafe {
            assert!(rms_norm(&whole, &zeros(&[4]), 1e-6).unwrap().is_none());
            assert!(rms_norm(&whole, &zeros(&[2, 3]), 1e-6).unwrap().is_none());
            assert!(rms_norm(&whole, &zeros(&[6]), 1e-6).unwrap().is_some());
            let mut gate = whole.shallow_clone();
            assert!(!silu_mul(&mut gate, &whole));
            assert!(!silu_mul(&mut gate, &zeros(&[6, 4])));
            assert!(same(&whole));
            assert!(silu_mul(&mut gate, &zeros(&[4, 6])));
            assert!(!same(&whole));
            let x = zeros(&[1, 3, 2, 4]).transpose(1, 2);
            let tables = |time, width| (zeros(&[time, width]), zeros(&[time, width]));
            assert!(rotate(&x, &tables(3, 4)).unwrap());
            assert!(!rotate(&x, &tables(2, 4)).unwrap());
            assert!(!rotate(&x, &tables(3, 8)).unwrap());
            let odd = zeros(&[1, 3, 2, 3]).transpose(1, 2);
            assert!(!rotate(&odd, &tables(3, 3)).unwrap());
        }
    }
}
