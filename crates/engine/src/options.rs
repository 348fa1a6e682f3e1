//! Options for training a student.

use ddk_objective::Objective;
use ddk_torch::AdamWOptions;

use crate::{filters::Filters, parallel::Parallel, schedule::Schedule};

/// How a student is trained.
#[derive(Debug, Clone)]
pub struct StudentOptions {
    /// The loss. With a gamma of 0, or without a teacher, it is the cross-entropy alone.
    pub objective: Objective,
    /// Both models' logits are cut to this many columns before any softmax: the tokenizer's largest id + 1.
    pub vocabulary: i64,
    /// Maximum number of positions whose logits exist at the same time.
    pub chunk: i64,
    /// The optimizer's constants.
    pub adamw: AdamWOptions,
    /// Activation checkpointing: the backward pass recomputes the activations inside each layer. The result is the
    /// same. It takes less memory and one more forward pass.
    pub recompute: bool,
    /// Gradients with a larger global L2 norm are scaled down to this one.
    pub clip_norm: f64,
    /// The learning rate by step.
    pub schedule: Schedule,
    /// TED's filters, if the loss includes a distance between layers.
    pub filters: Option<Filters>,
    /// The slots of a step, and the processes that share them.
    pub parallel: Parallel,
}
