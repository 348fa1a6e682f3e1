//! The chunked head: computes losses and gradients from hidden states.

use ddk_torch::{padded, takes_gpu_path};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    HeadInput, LogitBuffers, Objective, ObjectiveError,
    chunk::{self, Chunk},
    error::wrong_shape,
    logits::softmax_kind,
};

/// Which positions are scored, and the divisor of their sum.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// `[positions]`, i64: the next token; negative (-100 by convention) if the position is not scored.
    pub labels: &'a Tensor,
    /// `[positions]`: weight of each position, the same in every term. Default: 1.
    pub weights: Option<&'a Tensor>,
    /// Number of predictions in the whole optimizer step, not in this micro-batch. The gradient is that of the sum
    /// divided by this number.
    pub denominator: f64,
}

impl Positions<'_> {
    /// Returns 1 for each scored position and 0 for the others, and the same times the weights, both in dtype `kind`.
    pub(crate) fn scored_and_weights(&self, kind: Kind) -> Result<(Tensor, Tensor), TchError> {
        let scored = self.labels.f_ge(0)?.f_to_kind(kind)?;
        let weights = match self.weights {
            Some(weights) => scored.f_mul(&weights.f_to_kind(kind)?)?,
            None => scored.shallow_clone(),
        };
        Ok((scored, weights))
    }
}

/// How the head computes.
#[derive(Debug, Clone, Copy)]
pub struct HeadOptions {
    /// The loss.
    pub objective: Objective,
    /// Logits of both models are cut to this many columns before any softmax. A GPU forms a few more columns and
    /// leaves them out of the softmax.
    pub vocabulary: i64,
    /// Number of positions per chunk.
    pub chunk: i64,
    /// What to return besides sums and gradients.
    pub detail: Detail,
}

/// Which values of single positions to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// None: the sums are enough.
    Sums,
    /// The terms of the loss.
    Positions,
    /// Also the teacher's own cross-entropy, if there is a teacher. This forms the teacher's logits even if the
    /// loss leaves the teacher out.
    PositionsAndTeacher,
}

/// Accumulators for the gradients of the student's LM head, and the buffers of the head.
#[derive(Debug, Default)]
pub struct HeadGradients<'a> {
    /// Same shape as the student's LM head. Rows past the vocabulary stay as they are. `None` if the LM head is
    /// frozen.
    pub weight: Option<&'a mut Tensor>,
    /// Same shape as the student's bias, if it has a trainable one.
    pub bias: Option<&'a mut Tensor>,
    /// Buffers to reuse in the next call. Default: temporary buffers.
    pub buffers: Option<&'a mut LogitBuffers>,
}

/// Sums over the scored positions (not divided), and the gradient of the hidden states.
#[derive(Debug)]
pub struct HeadOutput {
    /// Sum of weight x cross-entropy, nats.
    pub ce_sum: f64,
    /// Sum of weight x divergence, nats (times T² if that is enabled); 0 without a teacher.
    pub kl_sum: f64,
    /// `[positions, d_model]`: gradient of (ce + gamma divergence) / denominator, in the hidden states' dtype.
    pub hidden_gradient: Tensor,
    /// Present if requested.
    pub per_position: Option<PerPosition>,
}

/// Values of each position, each `[positions]` in the dtype of the softmaxes: nats, before weights, 0 if the
/// position is not scored.
#[derive(Debug)]
pub struct PerPosition {
    /// The student's cross-entropy.
    pub ce: Tensor,
    /// The divergence from the teacher (times T² if that is enabled); 0 if the loss leaves the teacher out.
    pub divergence: Tensor,
    /// The teacher's own cross-entropy of the label; only with a teacher, and only if requested.
    pub teacher_ce: Option<Tensor>,
}

/// Computes losses and gradients of all positions, chunk by chunk. Without a teacher, or at gamma 0, the loss
/// leaves the teacher out.
///
/// Results depend only on the inputs and the chunk size. They have the same bits each time.
///
/// # Errors
/// If shapes do not match, if a label is past the vocabulary, or if memory runs out.
pub fn chunked_head(
    student: &HeadInput<'_>,
    teacher: Option<&HeadInput<'_>>,
    positions: &Positions<'_>,
    options: &HeadOptions,
    gradients: &mut HeadGradients<'_>,
) -> Result<HeadOutput, ObjectiveError> {
    check(student, teacher, positions, options)?;
    let _no_grad = tch::no_grad_guard();
    let teacher_ce = options.detail == Detail::PositionsAndTeacher;
    let teacher = teacher.filter(|_| options.objective.divergence_weight() != 0.0 || teacher_ce);
    let count = positions.labels.size()[0];
    let kind = softmax_kind(student.hidden);
    let (scored, weights) = positions.scored_and_weights(kind)?;
    let scale = weights.f_mul_scalar(1.0 / positions.denominator)?;
    let hidden_gradient = student.hidden.f_empty_like()?;
    let columns = columns(options.vocabulary, [Some(student), teacher]);
    let weight = student.weight.f_narrow(0, 0, columns)?;
    let mut values = Values::new(
        options.detail,
        teacher.is_some(),
        (count, kind, student.hidden.device()),
    )?;

    let mut own = LogitBuffers::default();
    let buffers = gradients.buffers.as_deref_mut().unwrap_or(&mut own);
    for (start, size) in chunks(count, options.chunk) {
        let of_chunk = |all: &Tensor| all.f_narrow(0, start, size);
        let logits = student.logits(start, size, columns, &mut buffers.student)?;
        let teacher_logits = teacher
            .map(|teacher| {
                let logits = teacher.logits(start, size, columns, &mut buffers.teacher)?;
                hide_past(options.vocabulary, &logits)?;
                logits.f_to_kind(kind)
            })
            .transpose()?;
        // The gradient overwrites the logits, but the slope of the cap still needs them.
        let capped = student
            .soft_cap
            .map(|_| logits.f_detach_copy())
            .transpose()?;
        hide_past(options.vocabulary, &logits)?;
        let chunk = Chunk {
            student: logits,
            teacher: teacher_logits,
            labels: &of_chunk(positions.labels)?,
            scale: &of_chunk(&scale)?,
            teacher_ce,
        };
        // SAFETY: the logits are new or in the buffers borrowed here, of which nothing else has a handle. `capped`
        // is a copy.
        let loss = unsafe { chunk::loss(chunk, &options.objective)? };
        values.add(start, &loss, &of_chunk(&scored)?, &of_chunk(&weights)?)?;
        let gradient = student
            .through(loss.gradient, capped.as_ref())?
            .f_to_kind(student.weight.kind())?;
        if let Some(weight) = &gradients.weight {
            let mut of_columns = weight.f_narrow(0, 0, columns)?;
            let hidden = of_chunk(student.hidden)?.f_to_kind(student.weight.kind())?;
            accumulate(&mut of_columns, &gradient.f_tr()?, &hidden)?;
        }
        if let Some(bias) = &mut gradients.bias {
            let mut bias = bias.f_narrow(0, 0, columns)?;
            let column_sums = gradient.f_sum_dim_intlist(0, false, bias.kind())?;
            let _ = bias.f_add_(&column_sums)?;
        }
        of_chunk(&hidden_gradient)?.f_copy_(&gradient.f_mm(&weight)?)?;
    }
    let sums = values.sums.f_to_device(Device::Cpu)?;
    Ok(HeadOutput {
        ce_sum: sums.f_double_value(&[0])?,
        kl_sum: sums.f_double_value(&[1])?,
        hidden_gradient,
        per_position: values.per_position,
    })
}

/// Start and size of each chunk of `count` positions.
fn chunks(count: i64, chunk: i64) -> impl Iterator<Item = (i64, i64)> {
    let chunk = chunk.max(1);
    let starts = (0..count).step_by(chunk as usize);
    starts.map(move |start| (start, chunk.min(count - start)))
}

/// Returns the sum of the cross-entropy (nats) over the scored positions, and their number. Computes no gradient.
/// For evaluation.
///
/// # Errors
/// If libtorch fails, for example because shapes do not match or memory runs out.
pub fn cross_entropy_sum(
    input: &HeadInput<'_>,
    labels: &Tensor,
    vocabulary: i64,
    chunk: i64,
) -> Result<(f64, i64), ObjectiveError> {
    let _no_grad = tch::no_grad_guard();
    let count = labels.size()[0];
    let scored = labels.f_ge(0)?;
    let labels = labels.f_clamp_min(0)?.f_unsqueeze(1)?;
    let mut sum = Tensor::f_zeros([1], (Kind::Double, labels.device()))?;
    let mut buffers = LogitBuffers::default();
    let columns = columns(vocabulary, [Some(input), None]);
    for (start, size) in chunks(count, chunk) {
        let logits = input.logits(start, size, columns, &mut buffers.student)?;
        hide_past(vocabulary, &logits)?;
        let of_label = logits
            .f_gather(1, &labels.f_narrow(0, start, size)?, false)?
            .f_squeeze_dim(1)?;
        let ce = logits.f_logsumexp(1, false)?.f_sub(&of_label)?;
        let scored = scored.f_narrow(0, start, size)?.f_to_kind(Kind::Double)?;
        sum = sum.f_add_(&ce.f_mul(&scored)?.f_sum(Kind::Double)?)?;
    }
    let scored = scored.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    Ok((sum.f_double_value(&[0])?, scored))
}

/// Returns the number of logit columns to form. On a GPU it is a multiple of [`ddk_torch::TILE`] if the matrices
/// have that many rows, because rows of other sizes are not aligned for the fast matmuls. If one matrix has fewer
/// rows, it is the vocabulary size.
fn columns(vocabulary: i64, inputs: [Option<&HeadInput<'_>>; 2]) -> i64 {
    let fitting = inputs.into_iter().flatten().map(|input| {
        let columns = padded(vocabulary, input.weight.device());
        let fits = input.weight.size()[0] >= columns;
        if fits { columns } else { vocabulary }
    });
    fitting.min().unwrap_or(vocabulary)
}

/// The logit of padding: finite, so that every difference of two logits is defined, and so low that its probability
/// is 0 at any temperature.
const HIDDEN_LOGIT: f64 = -1e30;

/// Removes the columns past the vocabulary from every softmax. Their gradients are 0.
fn hide_past(vocabulary: i64, logits: &Tensor) -> Result<(), TchError> {
    let padding = logits.size()[1] - vocabulary;
    if padding > 0 {
        let _ = logits
            .f_narrow(1, vocabulary, padding)?
            .f_fill_(HIDDEN_LOGIT)?;
    }
    Ok(())
}

/// Computes `target += left x right`. If the target has another dtype than the factors, GPUs add the unrounded sums
/// to it. The CPU first rounds the sums to the dtype of the factors.
fn accumulate(target: &mut Tensor, left: &Tensor, right: &Tensor) -> Result<(), TchError> {
    let kind = target.kind();
    let _ = if kind == left.kind() {
        target.f_addmm_(left, right)?
    } else if target.device().is_cuda() {
        target.f_addmm_dtype_out(target, left, right, kind)?
    } else if takes_gpu_path(target.device()) {
        // The CPU has no such matmul. Products of 16-bit numbers are exact in the dtype of the target.
        target.f_addmm_(&left.f_to_kind(kind)?, &right.f_to_kind(kind)?)?
    } else {
        target.f_add_(&left.f_mm(right)?.f_to_kind(kind)?)?
    };
    Ok(())
}

/// Sums of the values, in f64 on the device, so that nothing waits for the device until the end.
struct Values {
    sums: Tensor,
    per_position: Option<PerPosition>,
}

impl Values {
    fn new(
        detail: Detail,
        with_teacher: bool,
        (count, kind, device): (i64, Kind, Device),
    ) -> Result<Self, TchError> {
        let zeros = || Tensor::f_zeros([count], (kind, device));
        let teacher_ce = detail == Detail::PositionsAndTeacher && with_teacher;
        Ok(Self {
            sums: Tensor::f_zeros([2], (Kind::Double, device))?,
            per_position: match detail {
                Detail::Sums => None,
                Detail::Positions | Detail::PositionsAndTeacher => Some(PerPosition {
                    ce: zeros()?,
                    divergence: zeros()?,
                    teacher_ce: teacher_ce.then(zeros).transpose()?,
                }),
            },
        })
    }

    fn add(
        &mut self,
        start: i64,
        loss: &chunk::ChunkLoss,
        scored: &Tensor,
        weights: &Tensor,
    ) -> Result<(), TchError> {
        let sum = |values: &Tensor| values.f_mul(weights)?.f_sum(Kind::Double);
        let ce = sum(&loss.ce)?;
        let divergence = match &loss.divergence {
            Some(divergence) => sum(divergence)?,
            None => ce.f_zeros_like()?,
        };
        self.sums = self.sums.f_add_(&Tensor::f_stack(&[ce, divergence], 0)?)?;
        let Some(all) = &self.per_position else {
            return Ok(());
        };
        for (all, values) in [
            (Some(&all.ce), Some(&loss.ce)),
            (Some(&all.divergence), loss.divergence.as_ref()),
            (all.teacher_ce.as_ref(), loss.teacher_ce.as_ref()),
        ] {
            if let (Some(all), Some(values)) = (all, values) {
                all.f_narrow(0, start, values.size()[0])?
                    .f_copy_(&values.f_mul(scored)?)?;
            }
        }
        Ok(())
    }
}

fn check(
    student: &HeadInput<'_>,
    teacher: Option<&HeadInput<'_>>,
    positions: &Positions<'_>,
    options: &HeadOptions,
) -> Result<(), ObjectiveError> {
    let count = positions.labels.size();
    if count.len() != 1 {
        return wrong_shape("labels", &count, "[positions]");
    }
    for (side, input) in [("student", Some(student)), ("teacher", teacher)] {
        let Some(input) = input else { continue };
        let (hidden, weight) = (input.hidden.size(), input.weight.size());
        if hidden.len() != 2 || hidden[0] != count[0] {
            let expected = format!("[{}, d_model]", count[0]);
            return wrong_shape(&format!("the {side}'s hidden states"), &hidden, &expected);
        }
        if weight.len() != 2 || weight[1] != hidden[1] || weight[0] < options.vocabulary {
            let expected = format!("[at least {}, {}]", options.vocabulary, hidden[1]);
            return wrong_shape(&format!("the {side}'s LM head"), &weight, &expected);
        }
    }
    Ok(())
}
