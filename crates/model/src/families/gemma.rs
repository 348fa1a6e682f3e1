//! Gemma (Gemma Team, 2024): a Llama with GELU, embeddings scaled by sqrt(d_model) and tied to the LM head, and
//! norms that store their weight minus 1.

use super::llama;
use crate::{
    ModelError,
    fields::Fields,
    spec::{Activation, ArchitectureSpec, NormSpec},
};

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    // The first releases say "gelu" but mean its tanh approximation.
    let activation = fields.text("hidden_act", "gelu_pytorch_tanh")?;
    if !["gelu", "gelu_pytorch_tanh"].contains(&activation) {
        return Err(fields.unsupported("activation", activation, "gelu_pytorch_tanh"));
    }
    let mut design = llama::with_any_activation(fields)?;
    design.tied = fields.flag("tie_word_embeddings", true)?;
    design.attention.head_dim = fields.optional_size("head_dim")?.unwrap_or(256);
    design.embedding_scale = Some((design.hidden_size as f64).sqrt());
    design.norm = NormSpec::Rms {
        eps: fields.number("rms_norm_eps", 1e-6)?,
        plus_one: true,
    };
    design.mlp.activation = Activation::GeluTanh;
    Ok(design)
}
