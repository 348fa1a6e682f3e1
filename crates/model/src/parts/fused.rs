//! Runs the operations between matmuls with one-pass kernels, and records their backward passes. Each function returns
//! `None` if no kernel can handle its inputs: another device or dtype, shapes or layouts that do not fit, or the GPU
//! path without kernels. The caller then uses autograd and libtorch's operations, whose errors say what is wrong.
//!
//! Whether a gradient is needed changes no bit of the results, so a recomputation for a backward pass repeats them.

use ddk_torch::{attach, needs_gradient};
use tch::{TchError, Tensor};

use super::{Tables, kernels::Kernels};

/// Computes the root mean square norm of the last dimension.
///
/// # Safety
/// No thread may write to the storage of `x` or `weight` during the call, or before the backward pass.
pub(super) unsafe fn rms_norm(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<Option<Tensor>, TchError> {
    let Some(kernels) = Kernels::of(&[x, weight]).filter(|_| is_norm(x, weight)) else {
        return Ok(None);
    };
    let mut out = empty_like(x)?;
    // SAFETY: the caller promises that no thread writes to the inputs. The output is new, so it has no other handle.
    unsafe { kernels.norm(x, None, weight, eps, &mut out)? };
    if needs_gradient(&[x, weight]) {
        let saved = [x.detach(), weight.detach()];
        attach(&[&out], &[x, weight], move |gradients| {
            let [normed] = &gradients[..] else {
                return Ok(vec![None, None]);
            };
            // SAFETY: the caller of the forward pass promises it.
            let [x, weight] =
                unsafe { norm_backward(kernels, saved.each_ref(), eps, normed.as_ref(), None)? };
            Ok(vec![x, weight])
        })?;
    }
    Ok(Some(out))
}

/// Computes `sum = x + added` and the root mean square norm of the sum: returns both.
///
/// # Safety
/// As for [`rms_norm`], also for `added`. Nothing may write to the sum before the backward pass.
pub(super) unsafe fn add_rms_norm(
    [x, added]: [&Tensor; 2],
    weight: &Tensor,
    eps: f64,
) -> Result<Option<[Tensor; 2]>, TchError> {
    let fits = is_norm(x, weight) && x.size() == added.size();
    let Some(kernels) = Kernels::of(&[x, added, weight]).filter(|_| fits) else {
        return Ok(None);
    };
    let (mut sum, mut out) = (empty_like(x)?, empty_like(x)?);
    // SAFETY: as above.
    unsafe { kernels.norm(x, Some((added, &mut sum)), weight, eps, &mut out)? };
    if needs_gradient(&[x, added, weight]) {
        // The sum is detached, because a node that holds its own output is never freed.
        let saved = [sum.detach(), weight.detach()];
        attach(&[&sum, &out], &[x, added, weight], move |gradients| {
            let [of_sum, normed] = &gradients[..] else {
                return Ok(vec![None, None, None]);
            };
            let (normed, of_sum) = (normed.as_ref(), of_sum.as_ref());
            // SAFETY: the caller of the forward pass promises it.
            let [x, weight] =
                unsafe { norm_backward(kernels, saved.each_ref(), eps, normed, of_sum)? };
            let added = x.as_ref().map(Tensor::shallow_clone);
            Ok(vec![x, added, weight])
        })?;
    }
    Ok(Some([sum, out]))
}

/// Returns the gradients of the rows `x` and of the weight of a norm. `residual`: another gradient of the rows.
///
/// # Safety
/// No thread may write to the storage of any of the tensors during the call.
unsafe fn norm_backward(
    kernels: Kernels,
    [x, weight]: [&Tensor; 2],
    eps: f64,
    gradient: Option<&Tensor>,
    residual: Option<&Tensor>,
) -> Result<[Option<Tensor>; 2], TchError> {
    let Some(gradient) = gradient else {
        return Ok([residual.map(Tensor::shallow_clone), None]);
    };
    let gradient = gradient.f_contiguous()?;
    let residual = residual.map(Tensor::f_contiguous).transpose()?;
    let (mut of_x, mut of_weight) = (empty_like(x)?, empty_like(weight)?);
    let (inputs, outputs) = ([x, weight, &gradient], [&mut of_x, &mut of_weight]);
    // SAFETY: the caller promises that no thread writes to the inputs. The outputs are new, so they have no other
    // handles.
    unsafe { kernels.norm_backward(inputs, residual.as_ref(), eps, outputs)? };
    Ok([Some(of_x), Some(of_weight)])
}

/// Computes `silu(gate) * up`.
///
/// # Safety
/// No thread may write to the storage of `gate` or `up` during the call, or before the backward pass.
pub(super) unsafe fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Option<Tensor>, TchError> {
    let fits = gate.size() == up.size();
    let Some(kernels) = Kernels::of(&[gate, up]).filter(|_| fits) else {
        return Ok(None);
    };
    let mut out = empty_like(gate)?;
    // SAFETY: the caller promises that no thread writes to the inputs. The output is new.
    unsafe { kernels.silu_mul([gate, up], &mut out)? };
    if needs_gradient(&[gate, up]) {
        let saved = [gate.detach(), up.detach()];
        attach(&[&out], &[gate, up], move |gradients| {
            let [gate, up] = &saved;
            let Some(Some(gradient)) = gradients.first() else {
                return Ok(vec![None, None]);
            };
            let gradient = gradient.f_contiguous()?;
            let (mut of_gate, mut of_up) = (empty_like(gate)?, empty_like(up)?);
            let (inputs, outputs) = ([gate, up, &gradient], [&mut of_gate, &mut of_up]);
            // SAFETY: the caller of the forward pass promises that no thread writes to the inputs. The outputs are new.
            unsafe { kernels.silu_mul_backward(inputs, outputs)? };
            Ok(vec![Some(of_gate), Some(of_up)])
        })?;
    }
    Ok(Some(out))
}

/// Rotates `x` `[B, H, T, E]` if its layout in memory is `[B, T, H, E]`. Without a backward pass, in place.
///
/// # Safety
/// Nothing else may use the storage of `x` during the call, and no thread may write to that of the tables.
pub(super) unsafe fn rotate(x: &Tensor, tables: &Tables) -> Result<Option<Tensor>, TchError> {
    let (cos, sin) = tables;
    let &[_, _, time, width] = &x.size()[..] else {
        return Ok(None);
    };
    let fits = |table: &Tensor| table.size() == [time, width];
    if !fits(cos) || !fits(sin) || width % 2 != 0 {
        return Ok(None);
    }
    let by_position = x.f_transpose(1, 2)?;
    let Some(kernels) = Kernels::of(&[&by_position, cos, sin]) else {
        return Ok(None);
    };
    let is_recorded = needs_gradient(&[x]);
    let mut out = by_position.f_detach()?;
    if is_recorded {
        let mut copy = empty_like(&out)?;
        copy.f_copy_(&out)?;
        out = copy;
    }
    // SAFETY: the output is a copy, or nothing else uses its storage. The tables are only read, and they are tensors of
    // their own.
    unsafe { kernels.rotate(&mut out, tables)? };
    if is_recorded {
        let saved = (cos.detach(), sin.detach());
        attach(&[&out], &[&by_position], move |gradients| {
            let Some(Some(gradient)) = gradients.first() else {
                return Ok(vec![None]);
            };
            let gradient = gradient.f_contiguous()?;
            let mut out = empty_like(&gradient)?;
            // SAFETY: tables are written once, when they are created. The output is new.
            unsafe { kernels.rotate_backward(&gradient, &saved, &mut out)? };
            Ok(vec![Some(out)])
        })?;
    }
    Ok(Some(out.f_transpose(1, 2)?))
}

fn is_norm(x: &Tensor, weight: &Tensor) -> bool {
    let width = weight.size();
    width.len() == 1 && x.size().ends_with(&width)
}

/// Returns a contiguous tensor outside of the graph.
fn empty_like(tensor: &Tensor) -> Result<Tensor, TchError> {
    Tensor::f_empty(tensor.size(), (tensor.kind(), tensor.device()))
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn zeros(size: &[i64]) -> Tensor {
        Tensor::zeros(size, (Kind::Float, Device::Cpu))
    }

    /// Inputs that do not fit are left to libtorch.
    #[test]
    fn shapes_and_dtypes_that_do_not_fit_are_left_to_libtorch() {
        let whole = Tensor::ones([4, 6], (Kind::Float, Device::Cpu));
        // SAFETY: there is one thread, and no other handle is used during a call.
        unsafe {
            assert!(rms_norm(&whole, &zeros(&[4]), 1e-6).unwrap().is_none());
            assert!(rms_norm(&whole, &zeros(&[2, 3]), 1e-6).unwrap().is_none());
            assert!(rms_norm(&whole, &zeros(&[6]), 1e-6).unwrap().is_some());
            let doubles = whole.to_kind(Kind::Double);
            assert!(
                rms_norm(&doubles, &doubles.select(0, 0), 1e-6)
                    .unwrap()
                    .is_none()
            );
            let both = |other: &Tensor| add_rms_norm([&whole, other], &zeros(&[6]), 1e-6).unwrap();
            assert!(both(&zeros(&[6])).is_none() && both(&zeros(&[4, 6])).is_some());
            assert!(silu_mul(&whole, &zeros(&[6, 4])).unwrap().is_none());
            assert!(silu_mul(&whole, &zeros(&[4, 6])).unwrap().is_some());
            let x = zeros(&[1, 3, 2, 4]).transpose(1, 2);
            let tables = |time, width| (zeros(&[time, width]), zeros(&[time, width]));
            assert!(rotate(&x, &tables(3, 4)).unwrap().is_some());
            assert!(rotate(&x, &tables(2, 4)).unwrap().is_none());
            assert!(rotate(&x, &tables(3, 8)).unwrap().is_none());
            let odd = zeros(&[1, 3, 2, 3]).transpose(1, 2);
            assert!(rotate(&odd, &tables(3, 3)).unwrap().is_none());
        }
    }
}
