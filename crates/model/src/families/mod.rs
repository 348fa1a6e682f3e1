//! Model families: each small file turns a `config.json` into an [`ArchitectureSpec`].

mod gemma;
mod gpt_bigcode;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod served;

use crate::{
    ModelError,
    fields::Fields,
    spec::{ArchitectureSpec, Names, RotaryScaling, RotarySpec},
};

/// Turns a configuration into the spec of the decoder that it describes.
pub(crate) type Family = fn(Fields<'_>) -> Result<ArchitectureSpec, ModelError>;

/// Families by the architecture name in `config.json`.
const FAMILIES: [(&str, Family); 6] = [
    ("LlamaForCausalLM", llama::design),
    ("MistralForCausalLM", mistral::design),
    ("Qwen2ForCausalLM", qwen2::design),
    ("Qwen3ForCausalLM", qwen3::design),
    ("GemmaForCausalLM", gemma::design),
    ("GPTBigCodeForCausalLM", gpt_bigcode::design),
];

/// The architecture's name, and its family if DDK has it.
fn family(fields: Fields<'_>) -> (&str, Option<Family>) {
    let list = fields.get("architectures");
    let name = list.and_then(|list| list.get(0)?.as_str());
    let name = name.unwrap_or_default();
    let found = FAMILIES.iter().find(|(of, _)| *of == name);
    (name, found.map(|(_, family)| *family))
}

/// Returns the spec of the model that a configuration describes. Refuses unsupported settings by name.
pub(crate) fn design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let (name, family) = family(fields);
    let Some(of_family) = family else {
        let supported = FAMILIES.map(|(name, _)| name).join(", ");
        return Err(fields.unsupported("architecture", name, supported));
    };
    if let Some(quantization) = fields.get("quantization_config") {
        let method = quantization.get("quant_method").unwrap_or(quantization);
        let method = method
            .as_str()
            .map_or_else(|| method.to_string(), ToOwned::to_owned);
        return Err(fields.unsupported("quantization", method, "weights in f32, f16 or bf16"));
    }
    checked(of_family(fields)?, fields)
}

/// Works like [`design`], for a model that a server computes. Accepts every architecture and quantization.
pub(crate) fn served_design(fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    let of_family = family(fields).1.map(|of_family| of_family(fields));
    // A setting that DDK cannot compute does not matter: the server computes it.
    match of_family {
        Some(Ok(design)) => checked(design, fields),
        _ => checked(served::design(fields)?, fields),
    }
}

fn checked(design: ArchitectureSpec, fields: Fields<'_>) -> Result<ArchitectureSpec, ModelError> {
    design.check().map_err(|reason| fields.malformed(reason))?;
    Ok(design)
}

/// Llama's names for the parts, which most families share.
const LLAMA_NAMES: Names = Names {
    embedding: "model.embed_tokens",
    positions: "",
    layers: "model.layers",
    attention_norm: "input_layernorm",
    attention: "self_attn",
    attention_output: "o_proj",
    mlp_norm: "post_attention_layernorm",
    mlp: "mlp",
    mlp_up: "up_proj",
    mlp_down: "down_proj",
    final_norm: "model.norm",
    head: "lm_head",
};

/// Refuses an activation other than `expected`.
fn expect_activation(
    fields: Fields<'_>,
    key: &'static str,
    expected: &'static str,
) -> Result<(), ModelError> {
    let found = fields.text(key, expected)?;
    if found == expected {
        Ok(())
    } else {
        Err(fields.unsupported("activation", found, expected))
    }
}

/// Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (older).
fn rotary(fields: Fields<'_>) -> Result<RotarySpec, ModelError> {
    let theta = fields.number("rope_theta", 10_000.0)?;
    let parameters = match fields.inner("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => fields.inner("rope_scaling")?,
    };
    let Some(parameters) = parameters else {
        let scaling = RotaryScaling::None;
        return Ok(RotarySpec { theta, scaling });
    };
    let required = |key: &'static str| {
        let value = parameters.number(key, f64::NAN)?;
        if value > 0.0 {
            Ok(value)
        } else {
            Err(fields.malformed(format!(
                "`{key}` of the rotary embedding is missing or not positive"
            )))
        }
    };
    if parameters.number("partial_rotary_factor", 1.0)? != 1.0 {
        return Err(fields.unsupported("rope with partial_rotary_factor", "below 1", "1"));
    }
    let kind = parameters.text("rope_type", parameters.text("type", "default")?)?;
    let scaling = match kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear {
            factor: required("factor")?,
        },
        "llama3" => RotaryScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_positions: required("original_max_position_embeddings")?,
        },
        other => return Err(fields.unsupported("rope type", other, "default, linear, llama3")),
    };
    Ok(RotarySpec {
        theta: parameters.number("rope_theta", theta)?,
        scaling,
    })
}

/// Limits the sequence length to the attention window. On sequences that fit into the window, attention over a
/// window equals full attention.
fn within_window(fields: Fields<'_>, max_positions: i64, in_use: bool) -> Result<i64, ModelError> {
    let window = fields.optional_size("sliding_window")?.filter(|_| in_use);
    Ok(window.map_or(max_positions, |window| max_positions.min(window)))
}
