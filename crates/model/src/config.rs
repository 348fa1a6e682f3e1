//! `config.json`: which model a folder holds.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ModelError;

/// The shape of a model that is made anew; field names as in a Hugging Face configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Columns of the output matrix, rows of the embedding.
    pub vocab_size: i64,
    /// Width of the hidden states, d_model.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Heads of the queries.
    pub num_attention_heads: i64,
    /// Heads of keys and values; divides `num_attention_heads`.
    pub num_key_value_heads: i64,
    /// Longest sequence.
    pub max_position_embeddings: i64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
}

/// A model's configuration, as read from (or to be written to) `config.json`.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The shape.
    pub architecture: Architecture,
    /// Size of a head; usually `hidden_size / num_attention_heads`.
    pub head_dim: i64,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f64,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
    /// The whole file: keys that this program does not use are carried over when the model is saved.
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// The configuration of a new Llama model. `end_token`: the id that ends a document.
    pub fn llama(architecture: Architecture, end_token: Option<u32>) -> Result<Self, ModelError> {
        let mut raw = json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "initializer_range": 0.02,
            "rms_norm_eps": 1e-5,
            "dtype": "float32",
            "bos_token_id": null,
            "eos_token_id": end_token,
        });
        let shape = serde_json::to_value(&architecture).unwrap_or_default();
        if let (Value::Object(raw), Value::Object(shape)) = (&mut raw, shape) {
            // The name that transformers 5 reads; `rope_theta` beside it is what older programs read.
            raw.insert(
                "rope_parameters".to_owned(),
                json!({ "rope_type": "default", "rope_theta": architecture.rope_theta }),
            );
            raw.insert(
                "head_dim".to_owned(),
                json!(architecture.hidden_size / architecture.num_attention_heads.max(1)),
            );
            raw.extend(shape);
        }
        Self::parse(raw, Path::new("config.json"))
    }

    /// Reads `config.json` of a model's folder; what cannot be built is refused by name.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(ModelError::NotAModel {
                folder: folder.to_owned(),
                missing: "config.json",
            });
        }
        let text = fs::read_to_string(&path).map_err(ModelError::io("read", &path))?;
        let raw = serde_json::from_str(&text).map_err(|error| ModelError::Malformed {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        Self::parse(raw, &path)
    }

    fn parse(raw: Value, path: &Path) -> Result<Self, ModelError> {
        let malformed = |reason: String| ModelError::Malformed {
            path: path.to_owned(),
            reason,
        };
        let Value::Object(raw) = raw else {
            return Err(malformed("not a JSON object".to_owned()));
        };
        let fields: Fields = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|error| malformed(error.to_string()))?;
        fields.check(path)?;
        let heads = fields.num_attention_heads;
        let architecture = Architecture {
            vocab_size: fields.vocab_size,
            hidden_size: fields.hidden_size,
            intermediate_size: fields.intermediate_size,
            num_hidden_layers: fields.num_hidden_layers,
            num_attention_heads: heads,
            num_key_value_heads: fields.num_key_value_heads.unwrap_or(heads),
            max_position_embeddings: fields.max_position_embeddings,
            rope_theta: fields
                .rope_parameters
                .as_ref()
                .and_then(|rope| rope.rope_theta)
                .or(fields.rope_theta)
                .unwrap_or(10_000.0),
            tie_word_embeddings: fields.tie_word_embeddings,
        };
        for (name, value) in [
            ("vocab_size", architecture.vocab_size),
            ("hidden_size", architecture.hidden_size),
            ("intermediate_size", architecture.intermediate_size),
            ("num_hidden_layers", architecture.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", architecture.num_key_value_heads),
        ] {
            if value < 1 {
                return Err(malformed(format!("{name} is {value}: expected at least 1")));
            }
        }
        let head_dim = fields.head_dim.unwrap_or(architecture.hidden_size / heads);
        if fields.head_dim.is_none() && architecture.hidden_size % heads != 0 {
            return Err(malformed(format!(
                "hidden_size {} is not a multiple of num_attention_heads {heads}",
                architecture.hidden_size
            )));
        }
        if heads % architecture.num_key_value_heads != 0 || head_dim < 2 || head_dim % 2 != 0 {
            return Err(malformed(format!(
                "num_attention_heads {heads} must be a multiple of num_key_value_heads {}, and the head size {head_dim} even",
                architecture.num_key_value_heads
            )));
        }
        Ok(Self {
            architecture,
            head_dim,
            rms_norm_eps: fields.rms_norm_eps,
            initializer_range: fields.initializer_range,
            raw,
        })
    }

    /// The file to be written beside weights of the dtype named.
    pub(crate) fn to_json(&self, dtype: &str) -> Value {
        let mut raw = self.raw.clone();
        raw.remove("torch_dtype");
        raw.insert("dtype".to_owned(), dtype.into());
        Value::Object(raw)
    }
}

const ARCHITECTURES: &str = "LlamaForCausalLM";

#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    architectures: Vec<String>,
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    #[serde(default = "default_positions")]
    max_position_embeddings: i64,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_range")]
    initializer_range: f64,
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "default_activation")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    quantization_config: Option<Value>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

fn default_positions() -> i64 {
    2048
}

fn default_eps() -> f64 {
    1e-6
}

fn default_range() -> f64 {
    0.02
}

fn default_activation() -> String {
    "silu".to_owned()
}

impl Fields {
    fn check(&self, path: &Path) -> Result<(), ModelError> {
        let unsupported = |what, value: String, supported| {
            Err(ModelError::Unsupported {
                path: path.to_owned(),
                what,
                value,
                supported,
            })
        };
        if self.architectures.first().map(String::as_str) != Some(ARCHITECTURES) {
            return unsupported("architecture", self.architectures.join(", "), ARCHITECTURES);
        }
        if self.hidden_act != "silu" {
            return unsupported("activation", self.hidden_act.clone(), "silu");
        }
        for rope in [&self.rope_parameters, &self.rope_scaling]
            .into_iter()
            .flatten()
        {
            if let Some(kind) = &rope.rope_type
                && kind != "default"
            {
                return unsupported("rope type", kind.clone(), "default");
            }
        }
        if self.attention_bias || self.mlp_bias {
            return unsupported("attention_bias or mlp_bias", "true".to_owned(), "false");
        }
        if let Some(quantization) = &self.quantization_config {
            let method = quantization
                .get("quant_method")
                .map_or_else(|| quantization.to_string(), ToString::to_string);
            return unsupported("quantisation", method, "weights in f32, f16 or bf16");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: impl FnOnce(&mut Map<String, Value>)) -> Result<ModelConfig, ModelError> {
        let mut raw = json!({
            "architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "rope_scaling": null, "rope_theta": 5e5,
        });
        change(raw.as_object_mut().unwrap());
        ModelConfig::parse(raw, Path::new("m/config.json"))
    }

    #[test]
    fn what_is_left_out_has_transformers_defaults() {
        let config = parse(|_| ()).unwrap();
        assert_eq!((config.head_dim, config.rms_norm_eps), (8, 1e-6));
        assert_eq!(config.architecture.num_key_value_heads, 4);
        assert_eq!(config.architecture.rope_theta, 5e5);
        assert!(!config.architecture.tie_word_embeddings);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (key, value, said) in [
            (
                "architectures",
                json!(["MambaForCausalLM"]),
                "MambaForCausalLM",
            ),
            ("hidden_act", json!("gelu"), "gelu"),
            ("rope_scaling", json!({"rope_type": "yarn"}), "yarn"),
            (
                "quantization_config",
                json!({"quant_method": "gptq"}),
                "gptq",
            ),
            ("hidden_size", json!(30), "hidden_size 30"),
            ("num_key_value_heads", json!(3), "num_key_value_heads 3"),
            ("vocab_size", json!("many"), "invalid type"),
        ] {
            let error = parse(|raw| drop(raw.insert(key.to_owned(), value)))
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(said) && error.contains("m/config.json"),
                "{error}"
            );
        }
    }
}
