//! One chunk of positions: values and the gradient with respect to the student's logits.

use tch::{Device, TchError, Tensor};

use crate::Objective;

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
    let Some(teacher) = teacher.filter(|_| objective.gamma != 0.0) else {
        let mut gradient = into_exp(log_student)?;
        subtract_label(&mut gradient, labels)?;
        return Ok(ChunkLoss {
            ce,
            divergence: None,
            teacher_ce,
            gradient,
        });
    };
    let (gamma, temperature) = (objective.gamma, objective.temperature);
    if temperature == 1.0 {
        let (kl, teacher) = forward_kl(&log_student, teacher)?;
        // (1 + gamma) p_S - gamma p_T, in place.
        let mut gradient = into_exp(log_student)?.f_lerp_(&teacher, -gamma)?;
        subtract_label(&mut gradient, labels)?;
        return Ok(ChunkLoss {
            ce,
            divergence: Some(kl),
            teacher_ce,
            gradient,
        });
    }
    let mut gradient = into_exp(log_student)?;
    subtract_label(&mut gradient, labels)?;
    let log_student = student.f_div_scalar(temperature)?.f_log_softmax(-1, None)?;
    let mut teacher = teacher;
    let (kl, teacher) = forward_kl(&log_student, teacher.f_div_scalar_(temperature)?)?;
    let factor = objective.kl_factor();
    let difference = into_exp(log_student)?.f_sub_(&teacher)?;
    let gradient = gradient.f_add_(&{ difference }.f_mul_scalar_(gamma * factor / temperature)?)?;
    let kl = if factor == 1.0 {
        kl
    } else {
        kl.f_mul_scalar(factor)?
    };
    Ok(ChunkLoss {
        ce,
        divergence: Some(kl),
        teacher_ce,
        gradient,
    })
}

/// `sum p_T (t - s)` for each position, and p_T. `teacher` holds logits at the temperature of `log_student`.
fn forward_kl(log_student: &Tensor, teacher: Tensor) -> Result<(Tensor, Tensor), TchError> {
    let mut log_teacher = teacher.f_log_softmax(-1, None)?;
    drop(teacher);
    let teacher = log_teacher.f_exp()?;
    let difference = log_teacher.f_sub_(log_student)?;
    // The dot product of each position's two rows, without a third matrix.
    let kl = teacher
        .f_unsqueeze(1)?
        .f_bmm(&difference.f_unsqueeze(2)?)?
        .f_view([-1])?;
    Ok((kl, teacher))
}

fn into_exp(mut logarithm: Tensor) -> Result<Tensor, TchError> {
    logarithm.f_exp_()
}

fn subtract_label(gradient: &mut Tensor, labels: &Tensor) -> Result<(), TchError> {
    let minus_one = labels.f_ones_like()?.f_neg_()?.f_to_kind(gradient.kind())?;
    let _ = gradient.f_scatter_add_(1, labels, &minus_one)?;
    Ok(())
}
