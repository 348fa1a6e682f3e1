//! Mistral (Jiang et al., 2023): a Llama whose attention may look back over a window only. Sequences up to the window's
//! length are the same with and without it, and no longer ones are allowed.

use super::{llama, within_window};
use crate::{ModelError, fields::Fields, spec::ArchitectureSpec};

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let mut design = llama::design(fields)?;
    design.max_positions = within_window(fields, design.max_positions, true)?;
    Ok(design)
}
