//! What `ddk-kernel` does in one pass where a model is frozen, in fp32 on the CPU. Everything here says
//! `None` or `false` where it cannot (another device or dtype, shapes that do not fit, tensors that share
//! memory), and the caller takes libtorch's operations, whose errors say what is wrong.

use ddk_torch::{are_apart, as_slice, as_slice_mut};
use tch::{TchError, Tensor};

use super::Tables;

/// The threads of the calling worker.
fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// The root mean square norm of the last dimension.
///
/// # Safety
/// No thread writes to the storage of `x` or `weight` meanwhile.
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
    // SAFETY: nobody writes to the inputs, which the caller promises; the output is new, so no other handle
    // of it exists.
    let done = unsafe {
        match (as_slice(x), as_slice(weight), as_slice_mut(&mut out)) {
            (Some(x), Some(weight), Some(out)) => {
                ddk_kernel::rms_norm(x, weight, eps as f32, out, threads());
                true
            }
            _ => false,
        }
    };
    Ok(done.then_some(out))
}

/// `silu(gate) * up`, in the gate's place.
///
/// # Safety
/// Nobody else uses the gate's storage meanwhile, and no thread writes to that of `up`.
pub(super) unsafe fn silu_mul(gate: &mut Tensor, up: &Tensor) -> bool {
    if gate.requires_grad() || up.requires_grad() || gate.size() != up.size() {
        return false;
    }
    if !are_apart(&[gate, up]) {
        return false;
    }
    // SAFETY: the two are apart; the rest the caller promises.
    unsafe {
        match (as_slice_mut(gate), as_slice(up)) {
            (Some(gate), Some(up)) => {
                ddk_kernel::silu_mul(gate, up, threads());
                true
            }
            _ => false,
        }
    }
}

/// Rotates `x` `[B, H, T, E]` in place where it lies in memory as `[B, T, H, E]`.
///
/// # Safety
/// Nobody else uses the storage of `x` meanwhile, and no thread writes to the tables'.
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
    // SAFETY: `x` is not looked at in between, and is apart from the tables, which are only read; the rest
    // the caller promises.
    let done = unsafe {
        match (as_slice_mut(&mut by_position), as_slice(cos), as_slice(sin)) {
            (Some(x), Some(cos), Some(sin)) => {
                ddk_kernel::rotate(x, heads as usize, cos, sin, width as usize, threads());
                true
            }
            _ => false,
        }
    };
    Ok(done)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn zeros(size: &[i64]) -> Tensor {
        Tensor::zeros(size, (Kind::Float, Device::Cpu))
    }

    /// What does not fit is left to libtorch, and nothing is written.
    #[test]
    fn shapes_that_do_not_fit_and_shared_memory_are_left_to_libtorch() {
        let whole = Tensor::ones([4, 6], (Kind::Float, Device::Cpu));
        let same =
            |tensor: &Tensor| tensor.equal(&Tensor::ones([4, 6], (Kind::Float, Device::Cpu)));
        // SAFETY: one thread, and no other handle is used meanwhile.
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
