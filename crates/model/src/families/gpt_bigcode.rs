//! GPTBigCode (StarCoder; Li et al., 2023): a GPT-2 with multi-query attention: learned positions, LayerNorm, GELU.

use super::expect_activation;
use crate::{
    ModelError,
    fields::Fields,
    spec::{
        Activation, ArchitectureSpec, AttentionSpec, MlpSpec, Names, NormSpec, Positions,
        Projections,
    },
};

const NAMES: Names = Names {
    embedding: "transformer.wte",
    positions: "transformer.wpe",
    layers: "transformer.h",
    attention_norm: "ln_1",
    attention: "attn",
    attention_output: "c_proj",
    mlp_norm: "ln_2",
    mlp: "mlp",
    mlp_up: "c_fc",
    mlp_down: "c_proj",
    final_norm: "transformer.ln_f",
    head: "lm_head",
};

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    expect_activation(fields, "activation_function", "gelu_pytorch_tanh")?;
    if fields.flag("add_cross_attention", false)? {
        return Err(fields.unsupported("add_cross_attention", "true", "false"));
    }
    let hidden_size = fields.size("n_embd")?;
    let heads = fields.size("n_head")?;
    Ok(ArchitectureSpec {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        layers: fields.size("n_layer")?,
        max_positions: fields.optional_size("n_positions")?.unwrap_or(1024),
        tied: fields.flag("tie_word_embeddings", true)?,
        initializer_range: fields.number("initializer_range", 0.02)?,
        embedding_scale: None,
        positions: Positions::Learned,
        norm: NormSpec::Layer {
            eps: fields.number("layer_norm_epsilon", 1e-5)?,
        },
        attention: AttentionSpec {
            heads,
            num_key_value_heads: if fields.flag("multi_query", true)? {
                1
            } else {
                heads
            },
            head_dim: fields.even_share(hidden_size, heads)?,
            projections: Projections::Fused,
            output_bias: true,
            qk_norm: None,
            scale: (!fields.flag("scale_attn_weights", true)?).then_some(1.0),
        },
        mlp: MlpSpec {
            width: fields
                .optional_size("n_inner")?
                .unwrap_or(hidden_size.saturating_mul(4)),
            activation: Activation::GeluTanh,
            gated: false,
            bias: true,
        },
        names: &NAMES,
    })
}
