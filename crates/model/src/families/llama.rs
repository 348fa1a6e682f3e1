//! Llama (Touvron et al., 2023; Llama 3: Grattafiori et al., 2024): pre-norm blocks of rotary grouped-query
//! attention and a SwiGLU MLP. TinyLlama and many other models are Llamas.

use super::{LLAMA_NAMES, expect_activation, rotary};
use crate::{
    ModelError,
    fields::Fields,
    spec::{
        Activation, ArchitectureSpec, AttentionSpec, MlpSpec, NormSpec, Positions, Projections,
    },
};

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    expect_activation(fields, "hidden_act", "silu")?;
    with_any_activation(fields)
}

/// Works like [`design`], for a family with its own activation.
pub(super) fn with_any_activation(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let hidden_size = fields.size("hidden_size")?;
    let heads = fields.size("num_attention_heads")?;
    let attention_bias = fields.flag("attention_bias", false)?;
    Ok(ArchitectureSpec {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        layers: fields.size("num_hidden_layers")?,
        max_positions: fields
            .optional_size("max_position_embeddings")?
            .unwrap_or(2048),
        tied: fields.flag("tie_word_embeddings", false)?,
        initializer_range: fields.number("initializer_range", 0.02)?,
        embedding_scale: None,
        positions: Positions::Rotary(rotary(fields)?),
        norm: NormSpec::Rms {
            eps: fields.number("rms_norm_eps", 1e-6)?,
            plus_one: false,
        },
        attention: AttentionSpec {
            heads,
            num_key_value_heads: fields
                .optional_size("num_key_value_heads")?
                .unwrap_or(heads),
            head_dim: match fields.optional_size("head_dim")? {
                Some(size) => size,
                None => fields.even_share(hidden_size, heads)?,
            },
            projections: Projections::Separate {
                bias: attention_bias,
            },
            output_bias: attention_bias,
            qk_norm: None,
            scale: None,
        },
        mlp: MlpSpec {
            width: fields.size("intermediate_size")?,
            activation: Activation::Silu,
            gated: true,
            bias: fields.flag("mlp_bias", false)?,
        },
        names: &LLAMA_NAMES,
    })
}
