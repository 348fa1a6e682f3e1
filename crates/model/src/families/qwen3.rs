//! Qwen3 (Yang et al., 2025): a Llama with norms over each head of queries and keys, and an independent head size.

use super::{llama, within_window};
use crate::{ModelError, fields::Fields, spec::ArchitectureSpec};

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let mut design = llama::design(fields)?;
    design.attention.head_dim = fields.optional_size("head_dim")?.unwrap_or(128);
    design.attention.qk_norm = Some(design.norm);
    let window = fields.flag("use_sliding_window", false)?;
    design.max_positions = within_window(fields, design.max_positions, window)?;
    Ok(design)
}
