//! A model of any family that runs on a server. DDK reads only its LM head. The other sizes serve estimates of FLOPs
//! and memory, so they are read where other families have them, and may be missing.

use super::LLAMA_NAMES;
use crate::{
    ModelError,
    fields::Fields,
    spec::{
        Activation, ArchitectureSpec, AttentionSpec, MlpSpec, NormSpec, Positions, Projections,
        RotaryScaling, RotarySpec,
    },
};

/// Settings that change the logits after the LM head, and the value that changes nothing.
const AFTER_THE_HEAD: [(&str, f64); 4] = [
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("logits_scaling", 1.0),
    ("lm_head_multiplier", 1.0),
];

pub(super) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let name = super::family(fields).0;
    // Models of text and images keep the sizes of the language model in an inner table.
    let fields = fields.inner("text_config")?.unwrap_or(fields);
    for (key, neutral) in AFTER_THE_HEAD {
        let value = fields.number(key, neutral)?;
        if value != neutral {
            let supported = format!("{neutral}: DDK computes logits as LM head times hidden state");
            return Err(fields.unsupported(key, value.to_string(), supported));
        }
    }
    let first = |keys: &[&str]| {
        let mut sizes = keys.iter().map(|key| fields.optional_size(key));
        sizes.find_map(Result::transpose).transpose()
    };
    let hidden_size = first(&["hidden_size", "n_embd", "d_model"])?;
    let hidden_size = hidden_size.map_or_else(|| fields.size("hidden_size"), Ok)?;
    let heads = first(&["num_attention_heads", "n_head"])?.unwrap_or(1);
    let head_dim = fields.optional_size("head_dim")?;
    Ok(ArchitectureSpec {
        vocab_size: fields.size("vocab_size")?,
        hidden_size,
        layers: first(&["num_hidden_layers", "n_layer"])?.unwrap_or(1),
        max_positions: first(&["max_position_embeddings", "n_positions"])?.unwrap_or(1 << 20),
        // Gemma's configurations leave it out.
        tied: fields.flag("tie_word_embeddings", name.starts_with("Gemma"))?,
        initializer_range: 0.02,
        embedding_scale: None,
        positions: Positions::Rotary(RotarySpec {
            theta: 10_000.0,
            scaling: RotaryScaling::None,
        }),
        norm: NormSpec::Rms {
            eps: 1e-6,
            plus_one: false,
        },
        attention: AttentionSpec {
            heads,
            num_key_value_heads: first(&["num_key_value_heads"])?.unwrap_or(heads),
            head_dim: head_dim.unwrap_or((hidden_size / heads).max(1)),
            projections: Projections::Separate { bias: false },
            output_bias: false,
            qk_norm: None,
            scale: None,
        },
        mlp: MlpSpec {
            width: first(&["intermediate_size", "n_inner"])?.unwrap_or(4 * hidden_size),
            activation: Activation::Silu,
            gated: true,
            bias: false,
        },
        names: &LLAMA_NAMES,
    })
}
