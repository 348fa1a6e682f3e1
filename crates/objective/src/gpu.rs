//! Computes one chunk of positions with the CUDA kernels of `ddk-cuda`.

use ddk_cuda::{Source, losses};
use ddk_kernel::{Divergence, Values};
use ddk_torch::{are_near, has_kernels, launch};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Objective,
    chunk::{Chunk, ChunkLoss, by_tensors},
};

/// Numbers of fp64 in a position's [`Values`].
const VALUES: i64 = (size_of::<Values>() / size_of::<f64>()) as i64;

/// Maximum difference from libtorch's operations, relative to the largest number.
const TOLERANCE: f64 = 1e-5;

/// Whether to compute these logits with the kernels.
pub(crate) fn applies(logits: &Tensor) -> bool {
    let device = logits.device();
    logits.kind() == Kind::Float && has_kernels(device, Source::Loss, || check(device))
}

/// Reads each row of logits three times and writes it once. The gradient replaces the student's logits.
///
/// # Errors
/// If libtorch or CUDA fails.
///
/// # Safety
/// As for [`crate::chunk::loss`]. The teacher's logits do not overlap with the student's. Labels are less than the
/// number of columns.
pub(crate) unsafe fn loss(chunk: Chunk<'_>, objective: &Objective) -> Result<ChunkLoss, TchError> {
    // This copies only tensors that are not contiguous.
    let student = chunk.student.f_contiguous()?;
    let teacher = chunk.teacher.map(|teacher| teacher.f_contiguous());
    let teacher = teacher.transpose()?;
    let (device, (positions, columns)) = (student.device(), student.size2()?);
    let here = |tensor: &Tensor, kind| tensor.f_to_device(device)?.f_to_kind(kind)?.f_contiguous();
    let labels = here(chunk.labels, Kind::Int64)?;
    let scales = here(chunk.scale, Kind::Float)?;
    // No thread writes the cross-entropy of a label past the columns.
    let values = Tensor::f_full([positions, VALUES], f64::NAN, (Kind::Double, device))?;
    let too_many = |_| TchError::Torch(format!("{positions} x {columns} logits are too many"));
    let of_kernel = ddk_cuda::Chunk {
        student: student.data_ptr().cast(),
        teacher: teacher
            .as_ref()
            .map(|teacher| teacher.data_ptr().cast_const().cast()),
        labels: labels.data_ptr().cast_const().cast(),
        scales: scales.data_ptr().cast_const().cast(),
        values: values.data_ptr().cast(),
        positions: positions.try_into().map_err(too_many)?,
        columns: columns.try_into().map_err(too_many)?,
        teacher_ce: chunk.teacher_ce,
    };
    // SAFETY: the tensors are contiguous and of the kernel's dtypes. What this function creates is freed on the stream
    // that runs the kernel, so it stays valid until then. The caller promises the rest.
    unsafe {
        let launch_of = losses(&of_kernel, &objective.of_kernel());
        launch(device, Source::Loss, &[launch_of])?;
    }
    let column = |wanted: bool, at| wanted.then(|| values.f_select(1, at)).transpose();
    let has_teacher = teacher.is_some();
    Ok(ChunkLoss {
        ce: values.f_select(1, 0)?,
        divergence: column(has_teacher && objective.divergence_weight() != 0.0, 1)?,
        teacher_ce: column(has_teacher && chunk.teacher_ce, 2)?,
        gradient: student,
    })
}

/// Compares the kernels with libtorch's operations on this device: every divergence, on a few positions.
fn check(device: Device) -> Result<(), TchError> {
    const DIVERGENCES: [Option<Divergence>; 7] = [
        None,
        Some(Divergence::ForwardKl),
        Some(Divergence::ReverseKl),
        Some(Divergence::Jsd { beta: 0.3 }),
        Some(Divergence::SkewKl { skew: 0.1 }),
        Some(Divergence::SkewReverseKl { skew: 0.1 }),
        Some(Divergence::TotalVariation),
    ];
    // A block has as many threads as for any larger vocabulary.
    let (positions, columns) = (4, 2500);
    let logits = |frequency: f64| {
        let numbers = Tensor::f_arange(positions * columns, (Kind::Float, device))?;
        let waves = numbers.f_mul_scalar(frequency)?.f_sin()?;
        waves.f_mul_scalar(4.0)?.f_reshape([positions, columns])
    };
    let labels = Tensor::f_from_slice(&[3_i64, 2499, -100, 500])?.f_to_device(device)?;
    let scale = Tensor::f_from_slice(&[1.0_f32, 0.5, 0.0, 2.0])?.f_to_device(device)?;
    let scored = labels.f_ge(0)?.f_to_kind(Kind::Double)?;
    for divergence in DIVERGENCES {
        for temperature in [1.0, 2.0] {
            let objective = Objective {
                divergence,
                gamma: 0.7,
                temperature,
                ..Objective::default()
            };
            let chunk = || -> Result<Chunk<'_>, TchError> {
                Ok(Chunk {
                    student: logits(0.7)?,
                    teacher: Some(logits(1.1)?),
                    labels: &labels,
                    scale: &scale,
                    teacher_ce: true,
                })
            };
            // SAFETY: the logits are new, and the labels are less than the number of columns.
            let found = unsafe { loss(chunk()?, &objective)? };
            let expected = by_tensors(chunk()?, &objective)?;
            let [values, of_tensors] = [&found, &expected].map(|loss| values_of(loss, &scored));
            let are_same = are_near(&found.gradient, &expected.gradient, TOLERANCE)?
                && are_near(&values?, &of_tensors?, TOLERANCE)?;
            if !are_same {
                return Err(TchError::Torch(format!(
                    "the loss {divergence:?} at temperature {temperature} differs from that of libtorch's operations"
                )));
            }
        }
    }
    Ok(())
}

/// The values of the scored positions, one after another.
fn values_of(loss: &ChunkLoss, scored: &Tensor) -> Result<Tensor, TchError> {
    let columns = [
        Some(&loss.ce),
        loss.divergence.as_ref(),
        loss.teacher_ce.as_ref(),
    ];
    let columns = columns.into_iter().flatten();
    let columns = columns.map(|values| values.f_to_kind(Kind::Double)?.f_mul(scored));
    Tensor::f_cat(&columns.collect::<Result<Vec<_>, _>>()?, 0)
}

#[cfg(test)]
mod tests {
    use ddk_cuda::Twin;
    use ddk_torch::with_kernels;

    use super::*;

    #[test]
    fn kernels_that_compute_something_else_fail_the_check() {
        let folder = std::env::temp_dir().join(format!("ddk-objective-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let twin = Twin::compile(Source::Loss, &folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        // SAFETY: the launches are those of this crate, with addresses on the CPU.
        let run = move |_, launch: &ddk_cuda::Launch| unsafe { twin.run(launch) };
        with_kernels(run, || check(Device::Cpu)).unwrap();
        let error = with_kernels(|_, _| Ok(()), || check(Device::Cpu)).unwrap_err();
        assert!(error.to_string().contains("differs"), "{error}");
    }
}
