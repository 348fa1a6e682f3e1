//! Computes one chunk of positions: values and the gradient with respect to the student's logits.

use ddk_kernel::Divergence;
use ddk_torch::{are_apart, as_slice, as_slice_mut, takes_gpu_path, threads};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Objective,
    divergence::{diverge, forward_kl, into_exp},
    gpu,
};

/// Default number of positions whose logits are formed at a time, for this vocabulary size.
///
/// On the CPU, each of the two buffers of a chunk (positions x vocabulary, fp32) stays near 16 MiB. With fewer
/// positions, the matmuls read the LM head more often. More positions gain a few percent (docs/performance.md). On
/// a GPU, matmuls of fewer than 2,048 positions leave it idle.
pub fn default_chunk(vocabulary: i64, device: Device) -> i64 {
    let (numbers, range) = match device {
        Device::Cpu => (1 << 22, (64, 128)),
        _ => (1 << 27, (2048, i64::MAX)),
    };
    (numbers / vocabulary.max(1)).clamp(range.0, range.1)
}

/// Inputs of a chunk of positions.
pub(crate) struct Chunk<'a> {
    /// Logits `[count, vocabulary]`.
    pub(crate) student: Tensor,
    /// Same shape as `student`.
    pub(crate) teacher: Option<Tensor>,
    /// `[count]`; negative if the position is not scored.
    pub(crate) labels: &'a Tensor,
    /// `[count]`: scale factor for each position's gradient; 0 if the position is not scored.
    pub(crate) scale: &'a Tensor,
    /// Whether to compute the teacher's own cross-entropy.
    pub(crate) teacher_ce: bool,
}

/// The values of a chunk, each `[count]`, and the gradient `[count, vocabulary]` of `scale (ce + gamma *
/// divergence)`. Values at unscored positions are meaningless.
pub(crate) struct ChunkLoss {
    pub(crate) ce: Tensor,
    pub(crate) divergence: Option<Tensor>,
    pub(crate) teacher_ce: Option<Tensor>,
    pub(crate) gradient: Tensor,
}

/// Computes the losses of a chunk: with a kernel if one applies (fp32 on the CPU or a GPU), with libtorch otherwise.
///
/// # Errors
/// If the teacher's logits have another shape, dtype, or device than the student's, or share memory with them; if a
/// label is past the vocabulary; or if libtorch fails.
///
/// # Safety
/// Nothing else may use the storage of the student's logits during the call, and no thread may write to that of the
/// teacher's logits.
pub(crate) unsafe fn loss(chunk: Chunk<'_>, objective: &Objective) -> Result<ChunkLoss, TchError> {
    if let Some(teacher) = &chunk.teacher {
        let of = |logits: &Tensor| (logits.size(), logits.kind(), logits.device());
        let (own, others) = (of(&chunk.student), of(teacher));
        if own != others {
            return Err(TchError::Torch(format!(
                "the teacher's logits are {others:?}, and the student's {own:?}"
            )));
        }
        if !are_apart(&[&chunk.student, teacher]) {
            return Err(TchError::Torch(
                "the teacher's logits share memory with the student's".to_owned(),
            ));
        }
    }
    if gpu::applies(&chunk.student) {
        // SAFETY: the caller makes the same promises. Labels on a GPU were checked on the host.
        unsafe { gpu::loss(chunk, objective) }
    } else if !takes_gpu_path(chunk.student.device()) && chunk.student.kind() == Kind::Float {
        // SAFETY: the caller makes the same promises.
        unsafe { by_kernel(chunk, objective) }
    } else {
        by_tensors(chunk, objective)
    }
}

/// Computes one row of logits at a time, on the threads of the worker. The gradient replaces the logits.
///
/// # Safety
/// As for [`loss`].
unsafe fn by_kernel(chunk: Chunk<'_>, objective: &Objective) -> Result<ChunkLoss, TchError> {
    // This copies only tensors that are not contiguous.
    let mut student = chunk.student.f_contiguous()?;
    let teacher = chunk.teacher.map(|teacher| teacher.f_contiguous());
    let teacher = teacher.transpose()?;
    let labels = Vec::<i64>::try_from(chunk.labels)?;
    let columns = student.size()[1];
    if let Some(label) = labels.iter().find(|label| **label >= columns) {
        return Err(TchError::Torch(format!(
            "label {label} is past the vocabulary of {columns}"
        )));
    }
    let scales = Vec::<f32>::try_from(chunk.scale)?;
    let (weight, loss) = (objective.divergence_weight(), objective.of_kernel());
    let mut values = vec![ddk_kernel::Values::default(); labels.len()];
    // SAFETY: other handles of this memory may exist, but the caller promises that nothing uses them during the
    // call. The student's and the teacher's logits do not overlap.
    let slices = unsafe {
        let teacher = teacher.as_ref().map(|teacher| as_slice(teacher));
        as_slice_mut(&mut student).zip(Some(teacher.flatten()))
    };
    if let Some((student, teacher)) = slices {
        let chunk = ddk_kernel::Chunk {
            student,
            teacher,
            labels: &labels,
            scales: &scales,
            teacher_ce: chunk.teacher_ce,
        };
        ddk_kernel::losses(chunk, &loss, threads(), &mut values);
    }
    let column = |of: fn(&ddk_kernel::Values) -> f64| {
        let column: Vec<f64> = values.iter().map(of).collect();
        Tensor::f_from_slice(&column)
    };
    let of_teacher = |wanted: bool, of: fn(&ddk_kernel::Values) -> f64| {
        let column = (wanted && teacher.is_some()).then(|| column(of));
        column.transpose()
    };
    Ok(ChunkLoss {
        ce: column(|values| values.ce)?,
        divergence: of_teacher(weight != 0.0, |values| values.divergence)?,
        teacher_ce: of_teacher(chunk.teacher_ce, |values| values.teacher_ce)?,
        gradient: student,
    })
}

/// Computes one libtorch operation after another, on any device and also in f64.
pub(crate) fn by_tensors(chunk: Chunk<'_>, objective: &Objective) -> Result<ChunkLoss, TchError> {
    let (student, teacher) = (chunk.student, chunk.teacher);
    let labels = &chunk.labels.f_clamp_min(0)?.f_unsqueeze(1)?;
    let of_labels = |values: &Tensor| values.f_gather(1, labels, false)?.f_squeeze_dim(1);
    let asked = teacher.as_ref().filter(|_| chunk.teacher_ce);
    let cross_entropy = |logits: &Tensor| logits.f_logsumexp(1, false)?.f_sub(&of_labels(logits)?);
    let teacher_ce = asked.map(cross_entropy).transpose()?;
    let log_student = student.f_log_softmax(-1, None)?;
    let ce = of_labels(&log_student)?.f_neg()?;
    let loss = |divergence, gradient: Tensor| {
        Ok(ChunkLoss {
            ce,
            divergence,
            teacher_ce,
            gradient: { gradient }.f_mul_(&chunk.scale.f_unsqueeze(1)?)?,
        })
    };
    let weight = objective.divergence_weight();
    let (Some(mut teacher), Some(divergence)) =
        (teacher.filter(|_| weight != 0.0), objective.divergence)
    else {
        let gradient = without_label(into_exp(log_student)?, labels)?;
        return loss(None, gradient);
    };
    let temperature = objective.temperature;
    if temperature == 1.0 {
        let (value, gradient) = match divergence {
            // (1 + gamma) p_S - gamma p_T, in place.
            Divergence::ForwardKl => {
                let (value, teacher) = forward_kl(&log_student, teacher)?;
                let gradient = into_exp(log_student)?.f_lerp_(&teacher, -weight)?;
                (value, gradient)
            }
            _ => {
                let mut diverged = diverge(divergence, log_student, teacher)?;
                let gradient = diverged.gradient.f_mul_scalar_(weight)?;
                let gradient = diverged.probabilities.f_add_(&gradient)?;
                (diverged.value, gradient)
            }
        };
        return loss(Some(value), without_label(gradient, labels)?);
    }
    let mut gradient = without_label(into_exp(log_student)?, labels)?;
    let log_student = student.f_div_scalar(temperature)?.f_log_softmax(-1, None)?;
    drop(student);
    let teacher = teacher.f_div_scalar_(temperature)?;
    let mut diverged = diverge(divergence, log_student, teacher)?;
    drop(diverged.probabilities);
    let factor = objective.temperature_factor();
    let of_divergence = diverged
        .gradient
        .f_mul_scalar_(weight * factor / temperature)?;
    let gradient = gradient.f_add_(&of_divergence)?;
    let value = diverged.value.f_mul_scalar_(factor)?;
    loss(Some(value), gradient)
}

/// Turns probabilities into the gradient of the cross-entropy, in place.
fn without_label(mut probabilities: Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    let minus_one = labels
        .f_ones_like()?
        .f_neg_()?
        .f_to_kind(probabilities.kind())?;
    probabilities.f_scatter_add_(1, labels, &minus_one)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the check, the teacher's logits would be left out of the loss or misread if they do not fit.
    #[test]
    fn logits_that_do_not_belong_together_are_refused() {
        let objective = Objective {
            divergence: Some(Divergence::ForwardKl),
            gamma: 0.5,
            ..Objective::cross_entropy()
        };
        let logits = Tensor::from_slice(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]).reshape([2, 3]);
        let (labels, scale) = (
            Tensor::from_slice(&[0_i64, 1]),
            Tensor::ones([2], (Kind::Float, Device::Cpu)),
        );
        let of_teacher = |teacher: Tensor| {
            let chunk = Chunk {
                student: logits.copy(),
                teacher: Some(teacher),
                labels: &labels,
                scale: &scale,
                teacher_ce: false,
            };
            // SAFETY: only this thread has them.
            unsafe { loss(chunk, &objective) }
        };
        assert!(of_teacher(logits.flip([0])).unwrap().divergence.is_some());
        for (teacher, what) in [
            (logits.reshape([3, 2]), "the teacher's logits are ([3, 2]"),
            (logits.to_kind(Kind::Double), "Double"),
        ] {
            let error = of_teacher(teacher).err().unwrap().to_string();
            assert!(error.contains(what), "{error}");
        }
        let chunk = Chunk {
            student: logits.shallow_clone(),
            teacher: Some(logits.shallow_clone()),
            labels: &labels,
            scale: &scale,
            teacher_ce: false,
        };
        // SAFETY: only this thread has them.
        let error = unsafe { loss(chunk, &objective) }.err().unwrap();
        assert!(error.to_string().contains("share memory"), "{error}");
        assert_eq!(logits.double_value(&[1, 2]), 6.0, "nothing is written");
    }
}
