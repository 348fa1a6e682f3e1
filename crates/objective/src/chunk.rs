//! One chunk of positions: values and the gradient with respect to the student's logits.

use tch::{Device, TchError, Tensor};

use crate::{
    Divergence, Objective,
    divergence::{diverge, forward_kl, into_exp},
};

/// Positions whose logits are formed at a time, for a vocabulary.
///
/// On the CPU a buffer of the chunk (positions x vocabulary, fp32) is kept near 4 MiB, but no chunk is smaller than 64
/// positions, below which the matrix products slow down: measured with `head_memory --speed` (see docs/performance.md). On a GPU larger matrices are worth their memory.
pub fn default_chunk(vocabulary: i64, device: Device) -> i64 {
    let (numbers, least) = match device {
        Device::Cpu => (1 << 20, 64),
        _ => (1 << 27, 512),
    };
    (numbers / vocabulary.max(1)).max(least)
}

/// The values of a chunk, each `[count]`, and the gradient `[count, vocabulary]` of `ce + gamma * divergence` for each position.
pub(crate) struct ChunkLoss {
    pub(crate) ce: Tensor,
    pub(crate) divergence: Option<Tensor>,
    pub(crate) teacher_ce: Option<Tensor>,
    pub(crate) gradient: Tensor,
}

/// Losses of a chunk. `student` and `teacher` are logits `[count, vocabulary]`; `labels` `[count, 1]`. `teacher_ce`: whether the
/// teacher's own cross-entropy is wanted.
pub(crate) fn loss(
    student: &Tensor,
    teacher: Option<Tensor>,
    labels: &Tensor,
    objective: &Objective,
    teacher_ce: bool,
) -> Result<ChunkLoss, TchError> {
    let of_labels = |values: &Tensor| values.f_gather(1, labels, false)?.f_squeeze_dim(1);
    let teacher_ce = match &teacher {
        Some(logits) if teacher_ce => {
            Some(logits.f_logsumexp(1, false)?.f_sub(&of_labels(logits)?)?)
        }
        _ => None,
    };
    let log_student = student.f_log_softmax(-1, None)?;
    let ce = of_labels(&log_student)?.f_neg()?;
    let loss = |divergence, gradient| ChunkLoss {
        ce,
        divergence,
        teacher_ce,
        gradient,
    };
    let weight = objective.divergence_weight();
    let (Some(mut teacher), Some(divergence)) = (
        teacher.filter(|_| weight != 0.0),
        objective.divergence.as_ref(),
    ) else {
        let gradient = without_label(into_exp(log_student)?, labels)?;
        return Ok(loss(None, gradient));
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
                let mut diverged = diverge(*divergence, log_student, teacher)?;
                let gradient = diverged.gradient.f_mul_scalar_(weight)?;
                let gradient = diverged.probabilities.f_add_(&gradient)?;
                (diverged.value, gradient)
            }
        };
        return Ok(loss(Some(value), without_label(gradient, labels)?));
    }
    let mut gradient = without_label(into_exp(log_student)?, labels)?;
    let log_student = student.f_div_scalar(temperature)?.f_log_softmax(-1, None)?;
    let teacher = teacher.f_div_scalar_(temperature)?;
    let mut diverged = diverge(*divergence, log_student, teacher)?;
    drop(diverged.probabilities);
    let factor = objective.temperature_factor();
    let of_divergence = diverged
        .gradient
        .f_mul_scalar_(weight * factor / temperature)?;
    let gradient = gradient.f_add_(&of_divergence)?;
    let value = diverged.value.f_mul_scalar_(factor)?;
    Ok(loss(Some(value), gradient))
}

/// The gradient of the cross-entropy from the probabilities, in their place.
fn without_label(mut probabilities: Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    let minus_one = labels
        .f_ones_like()?
        .f_neg_()?
        .f_to_kind(probabilities.kind())?;
    probabilities.f_scatter_add_(1, labels, &minus_one)
}
