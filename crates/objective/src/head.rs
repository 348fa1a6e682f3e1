//! The chunked head: from hidden states to losses and gradients.

use ddk_torch::{padded, takes_gpu_path};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    HeadInput, LogitBuffers, Objective, ObjectiveError,
    chunk::{self, Chunk},
};

/// Which positions are scored, and what their sum is divided by.
#[derive(Debug, Clone, Copy)]
pub struct Positions<'a> {
    /// `[positions]`, i64: the next token; negative (-100 by custom) where nothing is scored.
    pub labels: &'a Tensor,
    /// `[positions]`: weight of each position, in every term alike; 1 where absent.
    pub weights: Option<&'a Tensor>,
    /// Predictions of the whole optimizer step (not of this micro-batch): the gradient is that of the sum
    /// divided by it.
    pub denominator: f64,
}

/// How the head computes.
#[derive(Debug, Clone, Copy)]
pub struct HeadOptions {
    /// The loss.
    pub objective: Objective,
    /// Logits of both models are cut to this many columns before any softmax; on a GPU, a few more are formed
    /// and left out of it.
    pub vocabulary: i64,
    /// Positions at a time.
    pub chunk: i64,
    /// What is wanted beside sums and gradients.
    pub detail: Detail,
}

/// Which values of single positions are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// None: the sums are enough.
    Sums,
    /// Those that the loss is made of.
    Positions,
    /// And the teacher's own cross-entropy, where there is a teacher; its logits are formed for it even where
    /// the loss leaves the teacher out.
    PositionsAndTeacher,
}

/// Where gradients of the student's head are added, in place, and what the head works in.
#[derive(Debug, Default)]
pub struct HeadGradients<'a> {
    /// Shape of the student's matrix; rows past the vocabulary stay as they are. Absent where the matrix is frozen.
    pub weight: Option<&'a mut Tensor>,
    /// Shape of the student's bias, where it has one that learns.
    pub bias: Option<&'a mut Tensor>,
    /// Kept for the next call; memory of its own where absent.
    pub buffers: Option<&'a mut LogitBuffers>,
}

/// Sums over the scored positions (not divided), and the gradient of the hidden states.
#[derive(Debug)]
pub struct HeadOutput {
    /// Sum of weight x cross-entropy, nats.
    pub ce_sum: f64,
    /// Sum of weight x divergence, nats (times T² where that is switched on); 0 without a teacher.
    pub kl_sum: f64,
    /// `[positions, d_model]`, of (ce + gamma divergence) / denominator, in the hidden states' dtype.
    pub hidden_gradient: Tensor,
    /// Where asked for.
    pub per_position: Option<PerPosition>,
}

/// Values of each position, each `[positions]` in the dtype of softmaxes: nats, before weights, 0 where
/// nothing is scored.
#[derive(Debug)]
pub struct PerPosition {
    /// The student's cross-entropy.
    pub ce: Tensor,
    /// The divergence from the teacher (times T² where that is switched on); 0 where the loss leaves the teacher out.
    pub divergence: Tensor,
    /// The teacher's own cross-entropy of the label; only with a teacher, and only where asked for.
    pub teacher_ce: Option<Tensor>,
}

/// Losses and gradients of all positions, chunk by chunk. Without a teacher, or at gamma 0, the teacher is
/// left out of the loss.
///
/// Results depend on the inputs and the chunk alone; they are the same bits each time.
///
/// # Errors
/// Shapes that do not belong together, a label past the vocabulary, memory.
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
    let kind = student.softmax_kind();
    let scored = positions.labels.f_ge(0)?.f_to_kind(kind)?;
    let weights = match positions.weights {
        Some(weights) => scored.f_mul(&weights.f_to_kind(kind)?)?,
        None => scored.shallow_clone(),
    };
    let scale = weights.f_mul_scalar(1.0 / positions.denominator)?;
    let hidden_gradient = student.hidden.f_empty_like()?;
    let columns = columns(options.vocabulary, [Some(student), teacher]);
    let mut weight_gradient = match &gradients.weight {
        Some(weight) => Some(weight.f_narrow(0, 0, columns)?),
        None => None,
    };
    let weight = student.weight.f_narrow(0, 0, columns)?;
    let mut values = Values::new(
        options.detail,
        teacher.is_some(),
        (count, kind, student.hidden.device()),
    )?;

    let mut own = LogitBuffers::default();
    let buffers = match &mut gradients.buffers {
        Some(buffers) => buffers,
        None => &mut own,
    };
    let mut start = 0;
    while start < count {
        let size = options.chunk.max(1).min(count - start);
        let logits = student.logits(start, size, columns, &mut buffers.student)?;
        let teacher_logits = teacher
            .map(|teacher| {
                let logits = teacher.logits(start, size, columns, &mut buffers.teacher)?;
                hide_past(options.vocabulary, &logits)?;
                logits.f_to_kind(kind)
            })
            .transpose()?;
        // The logits give their place to the gradient; the cap's slope still needs them.
        let capped = student
            .soft_cap
            .map(|_| logits.f_detach_copy())
            .transpose()?;
        hide_past(options.vocabulary, &logits)?;
        let chunk = Chunk {
            student: logits,
            teacher: teacher_logits,
            labels: &positions.labels.f_narrow(0, start, size)?,
            scale: &scale.f_narrow(0, start, size)?,
            teacher_ce,
        };
        // SAFETY: logits lie in the buffers borrowed here, of which nobody else has a handle, or are new;
        // `capped` is a copy.
        let loss = unsafe { chunk::loss(chunk, &options.objective)? };
        values.add(
            start,
            &loss,
            &scored.f_narrow(0, start, size)?,
            &weights.f_narrow(0, start, size)?,
        )?;
        let gradient = student
            .through(loss.gradient, capped.as_ref())?
            .f_to_kind(student.weight.kind())?;
        if let Some(weight_gradient) = &mut weight_gradient {
            let hidden = student.hidden.f_narrow(0, start, size)?;
            let hidden = hidden.f_to_kind(student.weight.kind())?;
            accumulate(weight_gradient, &gradient.f_tr()?, &hidden)?;
        }
        if let Some(bias) = &mut gradients.bias {
            let mut bias = bias.f_narrow(0, 0, columns)?;
            let column_sums = gradient.f_sum_dim_intlist(0, false, bias.kind())?;
            let _ = bias.f_add_(&column_sums)?;
        }
        hidden_gradient
            .f_narrow(0, start, size)?
            .f_copy_(&gradient.f_mm(&weight)?)?;
        start += size;
    }
    values.finish(hidden_gradient)
}

/// Returns the sum of the cross-entropy (nats) over the scored positions, and their number. Computes no gradient; meant
/// for evaluation.
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
    let mut start = 0;
    while start < count {
        let size = chunk.max(1).min(count - start);
        let logits = input.logits(start, size, columns, &mut buffers.student)?;
        hide_past(vocabulary, &logits)?;
        let of_label = logits
            .f_gather(1, &labels.f_narrow(0, start, size)?, false)?
            .f_squeeze_dim(1)?;
        let ce = logits.f_logsumexp(1, false)?.f_sub(&of_label)?;
        let scored = scored.f_narrow(0, start, size)?.f_to_kind(Kind::Double)?;
        sum = sum.f_add_(&ce.f_mul(&scored)?.f_sum(Kind::Double)?)?;
        start += size;
    }
    let scored = scored.f_sum(Kind::Int64)?.f_int64_value(&[])?;
    Ok((sum.f_double_value(&[0])?, scored))
}

/// The columns of logits to form: on a GPU a multiple of [`ddk_torch::TILE`] if the matrices have that many
/// rows, because rows of other sizes are not aligned for the fast products. Where one of them has fewer, the
/// vocabulary itself.
fn columns(vocabulary: i64, inputs: [Option<&HeadInput<'_>>; 2]) -> i64 {
    let inputs = inputs.into_iter().flatten();
    let fits = |input: &HeadInput<'_>| {
        let columns = padded(vocabulary, input.weight.device());
        (input.weight.size()[0] >= columns).then_some(columns)
    };
    let columns: Option<Vec<i64>> = inputs.map(fits).collect();
    columns
        .and_then(|columns| columns.into_iter().min())
        .unwrap_or(vocabulary)
}

/// What padding's logits are: finite, so that no difference of two is undefined, and so low that its
/// probability is 0 whatever the temperature.
const HIDDEN_LOGIT: f64 = -1e30;

/// Takes the columns past the vocabulary out of every softmax; their gradients are 0.
fn hide_past(vocabulary: i64, logits: &Tensor) -> Result<(), TchError> {
    let padding = logits.size()[1] - vocabulary;
    if padding > 0 {
        let _ = logits
            .f_narrow(1, vocabulary, padding)?
            .f_fill_(HIDDEN_LOGIT)?;
    }
    Ok(())
}

/// `target += left x right`. Of products in another dtype than the target's, GPUs add the sums to it as they
/// are; the CPU rounds them to the product's dtype first.
fn accumulate(target: &mut Tensor, left: &Tensor, right: &Tensor) -> Result<(), TchError> {
    let kind = target.kind();
    let _ = if kind == left.kind() {
        target.f_addmm_(left, right)?
    } else if target.device().is_cuda() {
        target.f_addmm_dtype_out(target, left, right, kind)?
    } else if takes_gpu_path(target.device()) {
        // The CPU has no such product: numbers of 16 bits have exact products in the target's dtype.
        target.f_addmm_(&left.f_to_kind(kind)?, &right.f_to_kind(kind)?)?
    } else {
        target.f_add_(&left.f_mm(right)?.f_to_kind(kind)?)?
    };
    Ok(())
}

/// Sums of the values, in f64 on the device: nothing is waited for until the end.
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

    fn finish(self, hidden_gradient: Tensor) -> Result<HeadOutput, ObjectiveError> {
        let sums = self.sums.f_to_device(Device::Cpu)?;
        Ok(HeadOutput {
            ce_sum: sums.f_double_value(&[0])?,
            kl_sum: sums.f_double_value(&[1])?,
            hidden_gradient,
            per_position: self.per_position,
        })
    }
}

fn check(
    student: &HeadInput<'_>,
    teacher: Option<&HeadInput<'_>>,
    positions: &Positions<'_>,
    options: &HeadOptions,
) -> Result<(), ObjectiveError> {
    let count = positions.labels.size();
    let wrong = |what, got: Vec<i64>, expected: String| {
        Err(ObjectiveError::Shape {
            what,
            got,
            expected,
        })
    };
    if count.len() != 1 {
        return wrong("labels", count, "[positions]".to_owned());
    }
    let sides = [
        (
            "the student's hidden states",
            "the student's output matrix",
            Some(student),
        ),
        (
            "the teacher's hidden states",
            "the teacher's output matrix",
            teacher,
        ),
    ];
    for (hidden_name, weight_name, input) in sides {
        let Some(input) = input else { continue };
        let (hidden, weight) = (input.hidden.size(), input.weight.size());
        if hidden.len() != 2 || hidden[0] != count[0] {
            return wrong(hidden_name, hidden, format!("[{}, d_model]", count[0]));
        }
        if weight.len() != 2 || weight[1] != hidden[1] || weight[0] < options.vocabulary {
            let expected = format!("[at least {}, {}]", options.vocabulary, hidden[1]);
            return wrong(weight_name, weight, expected);
        }
    }
    Ok(())
}
