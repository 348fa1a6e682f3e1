//! Computes TED's distance between a student layer and a teacher layer, both after filtering.
//!
//! Liang et al., "Less is More: Task-aware Layer-wise Distillation for Language Model Compression", ICML 2023. The
//! distance is the mean squared difference between the student's filtered hidden states and the teacher's. Here the
//! filters are linear maps. `ddk-engine` describes how they are trained.

use tch::{Kind, Tensor};

use crate::{ObjectiveError, Positions, error::wrong_shape, logits::softmax_kind};

/// A layer of the student and its target.
#[derive(Debug, Clone, Copy)]
pub struct LayerInput<'a> {
    /// The student's hidden states `[positions, d_student]`.
    pub hidden: &'a Tensor,
    /// The student's filter `[d_teacher, d_student]`, in the dtype of the master weights.
    pub filter: &'a Tensor,
    /// The teacher's filtered hidden states `[positions, d_teacher]`.
    pub target: &'a Tensor,
}

/// The distance of a layer, and its gradient.
#[derive(Debug)]
pub struct LayerOutput {
    /// Sum over the scored positions of weight x mean squared difference over d_teacher; not divided by the
    /// denominator.
    pub sum: f64,
    /// `[positions, d_student]`: gradient of `weight * distance / denominator`, in the hidden states' dtype.
    pub hidden_gradient: Tensor,
}

/// Computes the distance over the scored positions. As in every other term, padding and skipped tokens do not
/// count. `weight` is the weight of this distance in the loss. Adds the gradient of the filter to
/// `filter_gradient`.
///
/// Differences and their squares are in fp32 (f64 for f64 inputs).
///
/// # Errors
/// If shapes do not match, or if memory runs out.
pub fn layer_loss(
    input: &LayerInput<'_>,
    positions: &Positions<'_>,
    weight: f64,
    filter_gradient: &mut Tensor,
) -> Result<LayerOutput, ObjectiveError> {
    check(input, positions)?;
    let _no_grad = tch::no_grad_guard();
    let kind = softmax_kind(input.hidden);
    let filter = input.filter.f_to_kind(input.hidden.kind())?;
    let width = input.target.size()[1] as f64;
    let (_, weights) = positions.scored_and_weights(kind)?;
    let mut difference = input
        .hidden
        .f_mm(&filter.f_tr()?)?
        .f_to_kind(kind)?
        .f_sub_(&input.target.f_to_kind(kind)?)?;
    let sum = difference
        .f_square()?
        .f_sum_dim_intlist(1, false, kind)?
        .f_mul(&weights)?
        .f_sum(Kind::Double)?;
    let scale = weights.f_mul_scalar(2.0 * weight / (width * positions.denominator))?;
    let gradient = difference
        .f_mul_(&scale.f_unsqueeze(1)?)?
        .f_to_kind(input.hidden.kind())?;
    let of_filter = gradient.f_tr()?.f_mm(input.hidden)?;
    let _ = filter_gradient.f_add_(&of_filter.f_to_kind(filter_gradient.kind())?)?;
    Ok(LayerOutput {
        sum: sum.f_double_value(&[])? / width,
        hidden_gradient: gradient.f_mm(&filter)?,
    })
}

fn check(input: &LayerInput<'_>, positions: &Positions<'_>) -> Result<(), ObjectiveError> {
    let count = positions.labels.size()[0];
    let (hidden, filter) = (input.hidden.size(), input.filter.size());
    if hidden.len() != 2 || hidden[0] != count {
        return wrong_shape(
            "a student's layer",
            &hidden,
            &format!("[{count}, d_student]"),
        );
    }
    if filter.len() != 2 || filter[1] != hidden[1] {
        let expected = format!("[d_teacher, {}]", hidden[1]);
        return wrong_shape("a student's filter", &filter, &expected);
    }
    let (target, expected) = (input.target.size(), [count, filter[0]]);
    if target != expected {
        return wrong_shape("a teacher's layer", &target, &format!("{expected:?}"));
    }
    Ok(())
}
