//! Computes divergences and their gradients by explicit formulas, in log space.
//!
//! At a position, let `s` and `t` be the log-probabilities of student and teacher over the vocabulary, `p =
//! exp(s)`, `q = exp(t)`, and `u` the student's logits, all at the same temperature. Since `ds_k / du_j = [k = j] -
//! p_j`, a divergence with the partial derivatives `g_j = dD / ds_j` has the gradient `dD / du_j = g_j - p_j sum_k
//! g_k`. This gives:
//!
//! | divergence | value | gradient with respect to u |
//! |---|---|---|
//! | forward KL | `sum q (t - s)` | `p - q` |
//! | reverse KL | `D = sum p (s - t)` | `p (s - t - D)` |
//! | JSD, beta | `beta sum q (t - m) + (1 - beta) sum p (s - m)` | `(1 - beta) p (s - m - sum p (s - m))` |
//! | skew KL, a | `sum q (t - m)`, `m = log(a q + (1 - a) p)` | `p sum c - c`, `c = (1 - a) p q / exp(m)` |
//! | skew reverse KL, a | `sum p (s - m)`, `m = log(a p + (1 - a) q)` | `p (h - sum p h)`, `h = s - m - a p / exp(m)` |
//! | total variation | `1/2 sum abs(p - q)` | `1/2 p (h - sum p h)`, `h = sign(p - q)` |
//!
//! For JSD, `m = log(beta q + (1 - beta) p)`.
//!
//! A mixture is the `logaddexp` of the two logarithms, so its logarithm stays finite if a probability underflows.
//! Every quotient by a mixture is the exponential of a difference that is bounded above.
//!
//! Sources: forward KL: Hinton et al., 2015; reverse KL: Gu et al., "MiniLLM", 2024; JSD: Agarwal et al.,
//! "On-Policy Distillation of Language Models" (GKD), 2024, in TRL's convention, in which beta weights the teacher;
//! skew KLs: Ko et al., "DistiLLM", 2024; total variation: Wen et al., "f-Divergence Minimization for
//! Sequence-Level Knowledge Distillation", 2023.

use ddk_kernel::Divergence;
use tch::{TchError, Tensor};

/// A divergence at a chunk of positions.
pub(crate) struct Diverged {
    /// `[count]`.
    pub(crate) value: Tensor,
    /// With respect to the student's logits at the temperature, `[count, vocabulary]`.
    pub(crate) gradient: Tensor,
    /// The student's probabilities `[count, vocabulary]`.
    pub(crate) probabilities: Tensor,
}

/// `log_student` holds log-probabilities and `teacher` holds logits, both `[count, vocabulary]` and at the
/// temperature. Consumes both: at most four matrices of their shape exist at a time.
pub(crate) fn diverge(
    divergence: Divergence,
    log_student: Tensor,
    teacher: Tensor,
) -> Result<Diverged, TchError> {
    match divergence {
        Divergence::ForwardKl => {
            let (value, teacher) = forward_kl(&log_student, teacher)?;
            let probabilities = into_exp(log_student)?;
            let gradient = { teacher }.f_neg_()?.f_add_(&probabilities)?;
            Ok(Diverged {
                value,
                gradient,
                probabilities,
            })
        }
        Divergence::ReverseKl => reverse_kl(log_student, teacher),
        Divergence::Jsd { beta } => jsd(log_student, teacher, beta),
        Divergence::SkewKl { skew } => skew_kl(log_student, teacher, skew),
        Divergence::SkewReverseKl { skew } => skew_reverse_kl(log_student, teacher, skew),
        Divergence::TotalVariation => total_variation(log_student, teacher),
    }
}

/// Returns `sum q (t - s)` for each position, and also q.
pub(crate) fn forward_kl(
    log_student: &Tensor,
    teacher: Tensor,
) -> Result<(Tensor, Tensor), TchError> {
    let mut log_teacher = into_log_softmax(teacher)?;
    let teacher = log_teacher.f_exp()?;
    let difference = log_teacher.f_sub_(log_student)?;
    let kl = row_dots(&teacher, &difference)?;
    Ok((kl, teacher))
}

fn reverse_kl(log_student: Tensor, teacher: Tensor) -> Result<Diverged, TchError> {
    let mut slope = into_log_softmax(teacher)?.f_neg_()?.f_add_(&log_student)?;
    let probabilities = into_exp(log_student)?;
    // Use two passes, because s - t has no bound. If it is large, the rounding error of D is not small next to the
    // difference s - t - D.
    let first = row_dots(&probabilities, &slope)?;
    let slope = slope.f_sub_(&first.f_unsqueeze(1)?)?;
    let rest = row_dots(&probabilities, &slope)?;
    Ok(Diverged {
        gradient: centered(slope, &rest, &probabilities)?,
        value: { first }.f_add_(&rest)?,
        probabilities,
    })
}

fn jsd(log_student: Tensor, teacher: Tensor, beta: f64) -> Result<Diverged, TchError> {
    let mut log_teacher = into_log_softmax(teacher)?;
    let mut mixture = log_mixture(&log_teacher, beta, &log_student)?;
    let teacher = log_teacher.f_exp()?;
    let of_teacher = row_dots(&teacher, &log_teacher.f_sub_(&mixture)?)?;
    drop((teacher, log_teacher));
    let slope = mixture.f_neg_()?.f_add_(&log_student)?;
    let probabilities = into_exp(log_student)?;
    let of_student = row_dots(&probabilities, &slope)?;
    let gradient = centered(slope, &of_student, &probabilities)?.f_mul_scalar_(1.0 - beta)?;
    let value = { of_teacher }
        .f_mul_scalar_(beta)?
        .f_add_(&{ of_student }.f_mul_scalar_(1.0 - beta)?)?;
    Ok(Diverged {
        value,
        gradient,
        probabilities,
    })
}

fn skew_kl(log_student: Tensor, teacher: Tensor, skew: f64) -> Result<Diverged, TchError> {
    let mut log_teacher = into_log_softmax(teacher)?;
    let mut mixture = log_mixture(&log_teacher, skew, &log_student)?;
    let teacher = log_teacher.f_exp()?;
    let value = row_dots(&teacher, &log_teacher.f_sub_(&mixture)?)?;
    drop(log_teacher);
    // c = q (1 - a) p / exp(m): the exponential is at most 1.
    let mut shares = mixture
        .f_neg_()?
        .f_add_(&log_student)?
        .f_add_scalar_((1.0 - skew).ln())?
        .f_exp_()?
        .f_mul_(&teacher)?;
    drop(teacher);
    let sums = shares.f_sum_dim_intlist(1, true, shares.kind())?;
    let probabilities = into_exp(log_student)?;
    let gradient = shares.f_neg_()?.f_addcmul_(&probabilities, &sums)?;
    Ok(Diverged {
        value,
        gradient,
        probabilities,
    })
}

fn skew_reverse_kl(log_student: Tensor, teacher: Tensor, skew: f64) -> Result<Diverged, TchError> {
    let log_teacher = into_log_softmax(teacher)?;
    let mut mixture = log_mixture(&log_student, skew, &log_teacher)?;
    drop(log_teacher);
    let mut slope = mixture.f_neg_()?.f_add_(&log_student)?;
    let probabilities = into_exp(log_student)?;
    let value = row_dots(&probabilities, &slope)?;
    // a p / exp(m) is at most 1.
    let share = slope.f_add_scalar(skew.ln())?.f_exp_()?;
    let slope = slope.f_sub_(&share)?;
    drop(share);
    let mean = row_dots(&probabilities, &slope)?;
    Ok(Diverged {
        value,
        gradient: centered(slope, &mean, &probabilities)?,
        probabilities,
    })
}

fn total_variation(log_student: Tensor, teacher: Tensor) -> Result<Diverged, TchError> {
    // Compute both sides by the same steps, so that equal logits give equal bits and the sign of their difference
    // is 0.
    let teacher_probabilities = into_exp(into_log_softmax(teacher)?)?;
    let probabilities = into_exp(log_student)?;
    let mut difference = { teacher_probabilities }.f_neg_()?.f_add_(&probabilities)?;
    let value = difference
        .f_norm_scalaropt_dim(1.0, 1, false)?
        .f_mul_scalar_(0.5)?;
    let sign = difference.f_sign_()?;
    let mean = row_dots(&probabilities, &sign)?;
    Ok(Diverged {
        value,
        gradient: centered(sign, &mean, &probabilities)?.f_mul_scalar_(0.5)?,
        probabilities,
    })
}

/// Computes `p (h - mean)` in place of h. `mean` is `[count]`.
fn centered(mut slope: Tensor, mean: &Tensor, probabilities: &Tensor) -> Result<Tensor, TchError> {
    slope.f_sub_(&mean.f_unsqueeze(1)?)?.f_mul_(probabilities)
}

/// `log(share exp(one) + (1 - share) exp(other))`.
fn log_mixture(one: &Tensor, share: f64, other: &Tensor) -> Result<Tensor, TchError> {
    let one = one.f_add_scalar(share.ln())?;
    let other = other.f_add_scalar((1.0 - share).ln())?;
    one.f_logaddexp_out(&one, &other)
}

fn into_log_softmax(logits: Tensor) -> Result<Tensor, TchError> {
    logits.f_log_softmax(-1, None)
}

/// Computes the exponential in place.
pub(crate) fn into_exp(mut logarithm: Tensor) -> Result<Tensor, TchError> {
    logarithm.f_exp_()
}

/// Computes the dot product of the two rows at each position without a third matrix: `[count]`.
fn row_dots(left: &Tensor, right: &Tensor) -> Result<Tensor, TchError> {
    left.f_unsqueeze(1)?
        .f_bmm(&right.f_unsqueeze(2)?)?
        .f_view([-1])
}
