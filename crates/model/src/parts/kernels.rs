//! Computes the operations between matmuls with one-pass kernels: those of `ddk-kernel` in fp32 on the CPU, or those of
//! `ddk-cuda` on a GPU.

use std::ffi::c_void;

use ddk_cuda::{Dtype, Launch, Norm, NormBackward, Rotation, Source};
use ddk_kernel::NormInputs;
use ddk_torch::{as_slice, as_slice_mut, has_kernels, launch, takes_gpu_path, threads};
use tch::{Device, Kind, TchError, Tensor};

use super::{Tables, check};

/// The kernels for tensors of one dtype on one device.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kernels {
    Cpu,
    Cuda(Device, Dtype),
}

impl Kernels {
    /// Returns the kernels that can compute with these tensors. `None`: another device or dtype, a layout that does not
    /// fit, or the GPU path without kernels.
    pub(super) fn of(tensors: &[&Tensor]) -> Option<Self> {
        let (kind, device) = (tensors.first()?.kind(), tensors.first()?.device());
        let fits = |tensor: &&Tensor| {
            tensor.kind() == kind
                && tensor.device() == device
                && tensor.is_contiguous()
                && tensor.numel() > 0
        };
        if !tensors.iter().all(fits) {
            return None;
        }
        let dtype = match kind {
            Kind::Float => Dtype::F32,
            Kind::BFloat16 => Dtype::Bf16,
            _ => return None,
        };
        if has_kernels(device, Source::Layers, || check::layers(device)) {
            return Some(Self::Cuda(device, dtype));
        }
        let is_cpu = !takes_gpu_path(device) && kind == Kind::Float;
        is_cpu.then_some(Self::Cpu)
    }

    /// Computes the root mean square norm of rows. With `added`, first adds these rows, and writes the sum.
    ///
    /// # Safety
    /// These are the kernels of all tensors, which are contiguous. No thread writes to the inputs during the call.
    /// Nothing else uses the outputs.
    pub(super) unsafe fn norm(
        self,
        x: &Tensor,
        added: Option<(&Tensor, &mut Tensor)>,
        weight: &Tensor,
        eps: f64,
        out: &mut Tensor,
    ) -> Result<(), TchError> {
        let eps = eps as f32;
        let (device, dtype) = match self {
            Self::Cuda(device, dtype) => (device, dtype),
            Self::Cpu => {
                // SAFETY: the caller promises it.
                unsafe {
                    let inputs = as_slice(x).zip(as_slice(weight));
                    let ((x, weight), out) = inputs.zip(as_slice_mut(out)).ok_or_else(unfit)?;
                    match added {
                        None => ddk_kernel::rms_norm(x, weight, eps, out, threads()),
                        Some((added, sum)) => {
                            let both = as_slice(added).zip(as_slice_mut(sum));
                            let (added, sum) = both.ok_or_else(unfit)?;
                            ddk_kernel::add_rms_norm([x, added], weight, eps, sum, out, threads());
                        }
                    }
                }
                return Ok(());
            }
        };
        let norm = Norm {
            x: address(x),
            added: added.map(|(added, sum)| [address(added), address(sum)]),
            weight: address(weight),
            out: place(out),
            rows: whole(rows(x, weight))?,
            width: whole(weight.numel())?,
            eps,
        };
        // SAFETY: the caller promises it.
        unsafe { launch(device, Source::Layers, &[norm.launch(dtype)]) }
    }

    /// Computes the gradients of the rows and of the weight of a norm. `residual`: another gradient of the rows.
    ///
    /// # Safety
    /// As for [`Self::norm`].
    pub(super) unsafe fn norm_backward(
        self,
        [x, weight, gradient]: [&Tensor; 3],
        residual: Option<&Tensor>,
        eps: f64,
        [of_x, of_weight]: [&mut Tensor; 2],
    ) -> Result<(), TchError> {
        let eps = eps as f32;
        let (device, dtype) = match self {
            Self::Cuda(device, dtype) => (device, dtype),
            Self::Cpu => {
                // SAFETY: the caller promises it.
                let (slices, outputs, residual) = unsafe {
                    (
                        (as_slice(x), as_slice(weight), as_slice(gradient)),
                        (as_slice_mut(of_x), as_slice_mut(of_weight)),
                        residual.map(|residual| as_slice(residual).ok_or_else(unfit)),
                    )
                };
                let ((Some(x), Some(weight), Some(gradient)), (Some(of_x), Some(of_weight))) =
                    (slices, outputs)
                else {
                    return Err(unfit());
                };
                let inputs = NormInputs {
                    x,
                    weight,
                    eps,
                    gradient,
                    residual: residual.transpose()?,
                };
                ddk_kernel::rms_norm_backward(&inputs, of_x, of_weight, threads());
                return Ok(());
            }
        };
        let (rows, width) = (rows(x, weight), weight.numel());
        let sums = NormBackward::sums(rows, width);
        let sums = Tensor::f_empty([whole(sums)?], (Kind::Float, device))?;
        let backward = NormBackward {
            x: address(x),
            weight: address(weight),
            gradient: address(gradient),
            residual: residual.map(address),
            x_gradient: place(of_x),
            weight_gradient: place(of_weight),
            sums: sums.data_ptr().cast(),
            rows: whole(rows)?,
            width: whole(width)?,
            eps,
        };
        // SAFETY: as above. The sums are freed on the stream that runs the kernels.
        unsafe { launch(device, Source::Layers, &backward.launches(dtype)) }
    }

    /// Computes `silu(gate) * up`.
    ///
    /// # Safety
    /// As for [`Self::norm`].
    pub(super) unsafe fn silu_mul(
        self,
        [gate, up]: [&Tensor; 2],
        out: &mut Tensor,
    ) -> Result<(), TchError> {
        let (device, dtype) = match self {
            Self::Cuda(device, dtype) => (device, dtype),
            Self::Cpu => {
                // SAFETY: the caller promises it.
                let slices = unsafe { (as_slice(gate), as_slice(up), as_slice_mut(out)) };
                let (Some(gate), Some(up), Some(out)) = slices else {
                    return Err(unfit());
                };
                ddk_kernel::silu_mul(gate, up, out, threads());
                return Ok(());
            }
        };
        let inputs = [address(gate), address(up)];
        let launch_of = ddk_cuda::silu_mul(inputs, place(out), out.numel(), dtype);
        // SAFETY: as above.
        unsafe { launch(device, Source::Layers, &[launch_of]) }
    }

    /// Computes the gradients of the factors of [`Self::silu_mul`].
    ///
    /// # Safety
    /// As for [`Self::norm`].
    pub(super) unsafe fn silu_mul_backward(
        self,
        [gate, up, gradient]: [&Tensor; 3],
        [of_gate, of_up]: [&mut Tensor; 2],
    ) -> Result<(), TchError> {
        let (device, dtype) = match self {
            Self::Cuda(device, dtype) => (device, dtype),
            Self::Cpu => {
                // SAFETY: the caller promises it.
                let (inputs, outputs) = unsafe {
                    (
                        (as_slice(gate), as_slice(up), as_slice(gradient)),
                        (as_slice_mut(of_gate), as_slice_mut(of_up)),
                    )
                };
                let ((Some(gate), Some(up), Some(gradient)), (Some(of_gate), Some(of_up))) =
                    (inputs, outputs)
                else {
                    return Err(unfit());
                };
                let inputs = [gate, up, gradient];
                ddk_kernel::silu_mul_backward(inputs, of_gate, of_up, threads());
                return Ok(());
            }
        };
        let count = gate.numel();
        let inputs = [address(gate), address(up), address(gradient)];
        let outputs = [place(of_gate), place(of_up)];
        let launch_of = ddk_cuda::silu_mul_backward(inputs, outputs, count, dtype);
        // SAFETY: as above.
        unsafe { launch(device, Source::Layers, &[launch_of]) }
    }

    /// Rotates each head of `x` `[B, T, H, E]` in place.
    ///
    /// # Safety
    /// As for [`Self::norm`].
    pub(super) unsafe fn rotate(self, x: &mut Tensor, (cos, sin): &Tables) -> Result<(), TchError> {
        let (device, dtype) = match self {
            Self::Cuda(device, dtype) => (device, dtype),
            Self::Cpu => {
                let (heads, width) = heads(x)?;
                // SAFETY: the caller promises it.
                let slices = unsafe { (as_slice_mut(x), as_slice(cos), as_slice(sin)) };
                let (Some(x), Some(cos), Some(sin)) = slices else {
                    return Err(unfit());
                };
                ddk_kernel::rotate(x, heads, cos, sin, width, threads());
                return Ok(());
            }
        };
        let out = place(x);
        let launch_of = rotation([x, cos, sin], out, false, dtype)?;
        // SAFETY: as above. Each thread of the kernel reads both numbers of a pair before it writes them.
        unsafe { launch(device, Source::Layers, &[launch_of]) }
    }

    /// Rotates a gradient `[B, T, H, E]` back.
    ///
    /// # Safety
    /// As for [`Self::norm`].
    pub(super) unsafe fn rotate_backward(
        self,
        gradient: &Tensor,
        (cos, sin): &Tables,
        out: &mut Tensor,
    ) -> Result<(), TchError> {
        let (device, dtype) = match self {
            Self::Cuda(device, dtype) => (device, dtype),
            Self::Cpu => {
                let (heads, width) = heads(gradient)?;
                // SAFETY: the caller promises it.
                let (inputs, out) = unsafe {
                    (
                        (as_slice(gradient), as_slice(cos), as_slice(sin)),
                        as_slice_mut(out),
                    )
                };
                let ((Some(gradient), Some(cos), Some(sin)), Some(out)) = (inputs, out) else {
                    return Err(unfit());
                };
                ddk_kernel::rotate_backward(gradient, heads, [cos, sin], width, out, threads());
                return Ok(());
            }
        };
        let launch_of = rotation([gradient, cos, sin], place(out), true, dtype)?;
        // SAFETY: as above.
        unsafe { launch(device, Source::Layers, &[launch_of]) }
    }
}

fn rotation(
    [x, cos, sin]: [&Tensor; 3],
    out: *mut c_void,
    back: bool,
    dtype: Dtype,
) -> Result<Launch, TchError> {
    let (batch, time, heads, width) = x.size4()?;
    let rotation = Rotation {
        x: address(x),
        cos: address(cos),
        sin: address(sin),
        out,
        positions: whole(batch * time)?,
        time: whole(time)?,
        heads: whole(heads)?,
        width: whole(width)?,
        back,
    };
    Ok(rotation.launch(dtype))
}

/// The number of heads of `[B, T, H, E]`, and their width.
fn heads(x: &Tensor) -> Result<(usize, usize), TchError> {
    let (_, _, heads, width) = x.size4()?;
    Ok((whole(heads)?, whole(width)?))
}

/// The number of rows as wide as a weight.
fn rows(x: &Tensor, weight: &Tensor) -> usize {
    x.numel() / weight.numel().max(1)
}

/// A size in the type of a kernel.
fn whole<T, N: TryInto<T> + Copy + std::fmt::Display>(size: N) -> Result<T, TchError> {
    let too_large = |_| TchError::Torch(format!("a size of {size} is too large for the kernels"));
    size.try_into().map_err(too_large)
}

fn address(tensor: &Tensor) -> *const c_void {
    tensor.data_ptr().cast_const()
}

fn place(tensor: &mut Tensor) -> *mut c_void {
    tensor.data_ptr()
}

/// [`Kernels::of`] says which kernels fit, and a gradient is like its tensor, so this does not happen.
fn unfit() -> TchError {
    TchError::Torch("the dtype, device or layout of a tensor does not fit the kernel".to_owned())
}
