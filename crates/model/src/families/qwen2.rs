//! Qwen1.5, Qwen2 and Qwen2.5 (Yang et al., 2024): a Llama with biases on queries, keys and values.

use super::{llama, within_window};
use crate::{
    ModelError,
    fields::Fields,
    spec::{ArchitectureSpec, Projections},
};

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let mut design = llama::design(fields)?;
    design.attention.projections = Projections::Separate { bias: true };
    design.attention.output_bias = false;
    let window = fields.flag("use_sliding_window", false)?;
    design.max_positions = within_window(fields, design.max_positions, window)?;
    Ok(design)
}
