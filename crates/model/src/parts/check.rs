//! Compares the CUDA kernels with libtorch's operations and autograd, on a few numbers.

use ddk_torch::are_near;
use tch::{Device, Kind, TchError, Tensor};

use super::{
    fused,
    rotary::{Tables, rotate},
};

/// Compares every operation between matmuls, forward and backward, in fp32 and bf16.
///
/// # Errors
/// If a result differs by more than rounding, or if libtorch or CUDA fails.
pub(super) fn layers(device: Device) -> Result<(), TchError> {
    tch::with_grad(|| {
        of_kind(device, Kind::Float, 1e-5)?;
        // A result is rounded once with the kernels, and up to three times without.
        of_kind(device, Kind::BFloat16, 4e-2)
    })
}

fn of_kind(device: Device, kind: Kind, tolerance: f64) -> Result<(), TchError> {
    let waves = |size: &[i64], frequency: f64| -> Result<Tensor, TchError> {
        let count = size.iter().product::<i64>();
        let numbers = Tensor::f_arange(count, (Kind::Float, device))?;
        let waves = numbers.f_mul_scalar(frequency)?.f_sin()?;
        Ok(waves
            .f_reshape(size)?
            .f_to_kind(kind)?
            .set_requires_grad(true))
    };
    // Rows of several warps, and more rows than a block of the norm's backward pass takes.
    let (batch, time, heads, width) = (3, 11, 4, 136);
    let rows = [batch, time, heads * width];
    let (x, y) = (waves(&rows, 0.7)?, waves(&rows, 1.1)?);
    let weight = waves(&[heads * width], 0.3)?;
    let eps = 1e-5;
    let plain_norm = |x: &Tensor| x.f_rms_norm([heads * width], Some(&weight), eps);
    // SAFETY: this function alone has the tensors, and writes to none of them.
    let normed = unsafe { fused::rms_norm(&x, &weight, eps)? };
    let expected = plain_norm(&x)?;
    same("rms_norm", [normed], [expected], &[&x, &weight], tolerance)?;

    // SAFETY: as above.
    let both = unsafe { fused::add_rms_norm([&x, &y], &weight, eps)? };
    let sum = x.f_add(&y)?;
    let expected = [sum.shallow_clone(), plain_norm(&sum)?];
    let inputs = [&x, &y, &weight];
    same("add_rms_norm", some(both), expected, &inputs, tolerance)?;

    // SAFETY: as above.
    let product = unsafe { fused::silu_mul(&x, &y)? };
    let expected = x.f_silu()?.f_mul(&y)?;
    same("silu_mul", [product], [expected], &[&x, &y], tolerance)?;

    let table =
        |frequency| -> Result<Tensor, TchError> { Ok(waves(&[time, width], frequency)?.detach()) };
    // In a table, the second half repeats the first.
    let halves = |table: Tensor| -> Result<Tensor, TchError> {
        let half = table.f_narrow(1, 0, width / 2)?;
        Tensor::f_cat(&[&half, &half], 1)
    };
    let tables: Tables = (halves(table(0.5)?)?, halves(table(0.9)?)?);
    let by_head = x
        .f_reshape([batch, time, heads, width])?
        .f_transpose(1, 2)?;
    // SAFETY: as above. A gradient is needed, so the kernel writes to a copy.
    let turned = unsafe { fused::rotate(&by_head, &tables)? };
    let expected = rotate(&by_head, &tables)?;
    same("rotate", [turned], [expected], &[&x], tolerance)
}

/// Compares outputs and the gradients of the inputs.
fn same<const N: usize>(
    what: &str,
    found: [Option<Tensor>; N],
    expected: [Tensor; N],
    inputs: &[&Tensor],
    tolerance: f64,
) -> Result<(), TchError> {
    let differs = || {
        TchError::Torch(format!(
            "{what} differs from libtorch's operations ({:?})",
            inputs[0].kind()
        ))
    };
    let found = found.map(|found| found.ok_or_else(differs));
    let found: Vec<Tensor> = found.into_iter().collect::<Result<_, _>>()?;
    let gradients = |outputs: &[Tensor]| {
        // Odd factors, so that the sums of a weight's gradient do not cancel.
        let mut sum = Tensor::f_zeros([1], (Kind::Float, inputs[0].device()))?;
        for (number, output) in outputs.iter().enumerate() {
            let factor = output.detach().f_sin()?.f_add_scalar(number as f64)?;
            sum = sum.f_add(&output.f_mul(&factor)?.f_sum(Kind::Float)?)?;
        }
        Tensor::f_run_backward(&[sum], inputs, false, false)
    };
    let (of_found, of_expected) = (gradients(&found)?, gradients(&expected)?);
    let found = found.iter().chain(&of_found);
    for (found, expected) in found.zip(expected.iter().chain(&of_expected)) {
        if !are_near(found, expected, tolerance)? {
            return Err(differs());
        }
    }
    Ok(())
}

fn some<const N: usize>(all: Option<[Tensor; N]>) -> [Option<Tensor>; N] {
    match all {
        Some(all) => all.map(Some),
        None => std::array::from_fn(|_| None),
    }
}

#[cfg(test)]
mod tests {
    use ddk_cuda::{Launch, Source, Twin};
    use ddk_torch::with_kernels;

    use super::*;

    #[test]
    fn kernels_that_compute_something_else_fail_the_check() {
        let folder = tempfile::tempdir().unwrap();
        let twin = Twin::compile(Source::Layers, folder.path()).unwrap();
        // SAFETY: the launches are those of this crate, with addresses on the CPU.
        let run = move |_, launch: &Launch| unsafe { twin.run(launch) };
        with_kernels(run, || layers(Device::Cpu)).unwrap();
        let error = with_kernels(|_, _| Ok(()), || layers(Device::Cpu)).unwrap_err();
        assert!(error.to_string().contains("differs"), "{error}");
    }
}
