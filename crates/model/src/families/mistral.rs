//! Mistral (Jiang et al., 2023): a Llama whose attention may be limited to a window. The window makes no difference
//! to sequences up to its length, and longer ones are not allowed.

use super::{llama, within_window};
use crate::{ModelError, fields::Fields, spec::ArchitectureSpec};

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let mut design = llama::design(fields)?;
    design.max_positions = within_window(fields, design.max_positions, true)?;
    Ok(design)
}
