//! How a student learns.

use ddk_objective::Objective;

use crate::{adamw::AdamWOptions, filters::Filters, schedule::Schedule};

/// How a student learns.
#[derive(Debug, Clone)]
pub struct StudentOptions {
    /// The loss. A gamma of 0, or no teacher, leaves the cross-entropy alone.
    pub objective: Objective,
    /// Both models' logits are cut to this many columns before any softmax: the tokenizer's largest id + 1.
    pub vocabulary: i64,
    /// Positions whose logits exist at a time.
    pub chunk: i64,
    /// The optimizer's constants.
    pub adamw: AdamWOptions,
    /// Whether the activations inside a layer are computed again in the backward instead of kept: the same result, less
    /// memory, one more forward.
    pub recompute: bool,
    /// Gradients are scaled down to this global L2 norm.
    pub clip_norm: f64,
    /// The learning rate by step.
    pub schedule: Schedule,
    /// TED's filters, where the loss has a distance between layers.
    pub filters: Option<Filters>,
}
