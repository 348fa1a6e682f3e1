//! What `ddk-kernel` does in one pass where a model is frozen, in fp32 on the CPU. Everything here says `None` or `false` where it cannot,
//! and the caller takes libtorch's operations.

use ddk_torch::{numbers, numbers_mut};
use tch::{TchError, Tensor};

use super::Tables;

/// The threads of the calling lane.
fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// The root mean square norm of the last dimension.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Option<Tensor>, TchError> {
    if x.requires_grad() || weight.requires_grad() {
        return Ok(None);
    }
    let mut out = x.f_empty_like()?;
    // SAFETY: the inputs are read while nobody writes to them; the output is new.
    let done = unsafe {
        match (numbers(x), numbers(weight), numbers_mut(&mut out)) {
            (Some(x), Some(weight), Some(out)) => {
                ddk_kernel::rms_norm(x, weight, eps as f32, out, threads());
                true
            }
            _ => false,
        }
    };
    Ok(done.then_some(out))
}

/// `silu(gate) * up`, in the gate's place. `gate`: a tensor that nobody else has.
pub(super) fn silu_mul(gate: &mut Tensor, up: &Tensor) -> bool {
    if gate.requires_grad() || up.requires_grad() {
        return false;
    }
    // SAFETY: the caller made both just now.
    unsafe {
        match (numbers_mut(gate), numbers(up)) {
            (Some(gate), Some(up)) => {
                ddk_kernel::silu_mul(gate, up, threads());
                true
            }
            _ => false,
        }
    }
}

/// Rotates `x` `[B, H, T, E]` in place where it lies in memory as `[B, T, H, E]`. `x`: a view of a tensor that nobody else has.
pub(super) fn rotate(x: &Tensor, (cos, sin): &Tables) -> Result<bool, TchError> {
    let &[_, heads, _, width] = &x.size()[..] else {
        return Ok(false);
    };
    if x.requires_grad() {
        return Ok(false);
    }
    let mut by_position = x.f_transpose(1, 2)?;
    // SAFETY: the caller made it just now, and does not look at it in between; the tables are only read.
    let done = unsafe {
        match (numbers_mut(&mut by_position), numbers(cos), numbers(sin)) {
            (Some(x), Some(cos), Some(sin)) => {
                ddk_kernel::rotate(x, heads as usize, cos, sin, width as usize, threads());
                true
            }
            _ => false,
        }
    };
    Ok(done)
}
