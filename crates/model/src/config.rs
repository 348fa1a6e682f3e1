//! Reads and writes `config.json`, the configuration of the model in a folder.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    Model, ModelError, families,
    fields::{Fields, read_json},
    spec::ArchitectureSpec,
};

/// The shape of a new model. Field names match those of a Hugging Face configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Size of the vocabulary: rows of the embedding and of the LM head.
    pub vocab_size: i64,
    /// Width of the hidden states, d_model.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of query heads.
    pub num_attention_heads: i64,
    /// Number of key-value heads. Divides `num_attention_heads`.
    pub num_key_value_heads: i64,
    /// Maximum sequence length.
    pub max_position_embeddings: i64,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Whether the LM head is the embedding.
    pub tie_word_embeddings: bool,
}

/// A model's configuration, as read from (or to be written to) `config.json`.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    design: ArchitectureSpec,
    /// The whole file. Saving the model keeps the keys that this program does not use.
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// Returns the configuration of a new Llama model. `end_token` is the id that ends a document.
    ///
    /// # Errors
    /// If a size is out of range, or if the sizes do not fit together.
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
            // transformers 5 reads this key; older programs read `rope_theta` beside it.
            "rope_parameters": { "rope_type": "default", "rope_theta": architecture.rope_theta },
            "head_dim": architecture.hidden_size / architecture.num_attention_heads.max(1),
        });
        let shape = serde_json::to_value(&architecture).unwrap_or_default();
        if let (Value::Object(raw), Value::Object(shape)) = (&mut raw, shape) {
            raw.extend(shape);
        }
        Self::parse(raw, Path::new("config.json"))
    }

    /// Hashes what determines the computation: sizes, kinds of parts, and constants. Ignores the rest of the file.
    ///
    /// # Errors
    /// If the constants cannot be written as JSON.
    pub fn hash(&self) -> serde_json::Result<String> {
        let constants = serde_json::to_vec(&self.design)?;
        Ok(blake3::hash(&constants).to_hex().to_string())
    }

    /// Reads the `config.json` of a model's folder.
    ///
    /// # Errors
    /// If the file is missing or invalid, or if the model is not supported. The error names the setting.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        Self::read_by(folder, families::design)
    }

    /// Works like [`Self::read`], for a model that a server computes: DDK reads only its LM head, so every
    /// architecture and quantization is supported. [`Self::parameter_count`] and the FLOPs are then estimates.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub fn read_served(folder: &Path) -> Result<Self, ModelError> {
        Self::read_by(folder, families::served_design)
    }

    fn read_by(folder: &Path, design: families::Family) -> Result<Self, ModelError> {
        let path = folder.join("config.json");
        if !path.exists() {
            return Err(ModelError::NotAModel {
                folder: folder.to_owned(),
                missing: "config.json",
            });
        }
        Self::parse_by(read_json(&path)?, &path, design)
    }

    fn parse(raw: Value, path: &Path) -> Result<Self, ModelError> {
        Self::parse_by(raw, path, families::design)
    }

    fn parse_by(raw: Value, path: &Path, design: families::Family) -> Result<Self, ModelError> {
        let Value::Object(raw) = raw else {
            return Err(ModelError::malformed(path, "not a JSON object"));
        };
        let design = design(Fields { raw: &raw, path })?;
        Ok(Self { design, raw })
    }

    /// The whole file.
    pub(crate) fn raw(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// Reads a changed copy of [`Self::raw`].
    pub(crate) fn of_raw(raw: Map<String, Value>) -> Result<Self, ModelError> {
        Self::parse(Value::Object(raw), Path::new("config.json"))
    }

    pub(crate) fn design(&self) -> &ArchitectureSpec {
        &self.design
    }

    /// The name of the model's class in transformers, such as `LlamaForCausalLM`.
    pub fn architecture(&self) -> &str {
        let name = self
            .raw
            .get("architectures")
            .and_then(|list| list.get(0)?.as_str());
        name.unwrap_or_default()
    }

    /// Size of the vocabulary, padding included.
    pub fn vocab_size(&self) -> i64 {
        self.design.vocab_size
    }

    /// Width of the hidden states, d_model.
    pub fn hidden_size(&self) -> i64 {
        self.design.hidden_size
    }

    /// Width of the MLP.
    pub fn intermediate_size(&self) -> i64 {
        self.design.mlp.width
    }

    /// Number of layers.
    pub fn layers(&self) -> i64 {
        self.design.layers
    }

    /// Number of query heads, number of key-value heads, and head size.
    pub fn heads(&self) -> (i64, i64, i64) {
        self.design.attention.sizes()
    }

    /// Maximum sequence length.
    pub fn max_positions(&self) -> i64 {
        self.design.max_positions
    }

    /// Whether the LM head is the embedding.
    pub fn tied(&self) -> bool {
        self.design.tied
    }

    /// Name and shape of the LM head's tensor.
    pub fn head(&self) -> (String, Vec<i64>) {
        let shape = vec![self.vocab_size(), self.hidden_size()];
        (self.design.head_name(), shape)
    }

    /// Counts all parameters.
    ///
    /// # Errors
    /// If libtorch cannot create the placeholder tensors that give the parameters' shapes.
    pub fn parameter_count(&self) -> Result<i64, ModelError> {
        let needed = Model::needed(self)?;
        let sizes = needed
            .iter()
            .map(|(_, shape)| shape.iter().product::<i64>());
        Ok(sizes.sum())
    }

    /// The dtype of the weights according to the file, such as `bfloat16`.
    pub fn dtype(&self) -> Option<&str> {
        let raw = &self.raw;
        raw.get("dtype").or(raw.get("torch_dtype"))?.as_str()
    }

    /// The contents of the file to write beside weights of this dtype.
    pub(crate) fn to_json(&self, dtype: &str) -> Value {
        let mut raw = self.raw.clone();
        raw.remove("torch_dtype");
        raw.insert("dtype".to_owned(), dtype.into());
        Value::Object(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Positions, RotaryScaling, RotarySpec};

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
        assert_eq!(config.heads(), (4, 4, 8));
        assert!(!config.tied());
        let of = |theta| RotarySpec {
            theta,
            scaling: RotaryScaling::None,
        };
        assert_eq!(config.design().positions, Positions::Rotary(of(5e5)));
        let newer = parse(|raw| {
            raw.insert(
                "rope_parameters".to_owned(),
                json!({"rope_type": "default", "rope_theta": 1e6}),
            );
        });
        assert_eq!(
            newer.unwrap().design().positions,
            Positions::Rotary(of(1e6))
        );
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
            ("hidden_size", json!(30), "hidden size 30"),
            (
                "rope_scaling",
                json!({"rope_type": "llama3", "factor": 8}),
                "low_freq_factor",
            ),
            ("num_key_value_heads", json!(3), "num_key_value_heads 3"),
            ("vocab_size", json!("many"), "`vocab_size` is \"many\""),
            ("vocab_size", json!(null), "`vocab_size` is missing"),
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

    #[test]
    fn a_served_model_may_be_of_any_family() {
        let served = |change: &dyn Fn(&mut Map<String, Value>)| {
            let mut raw = json!({
                "architectures": ["NewForCausalLM"], "vocab_size": 300, "hidden_size": 32,
                "quantization_config": {"quant_method": "awq"},
            });
            change(raw.as_object_mut().unwrap());
            ModelConfig::parse_by(raw, Path::new("m/config.json"), families::served_design)
        };
        let config = served(&|_| ()).unwrap();
        assert_eq!((config.hidden_size(), config.vocab_size()), (32, 300));
        assert_eq!(config.design().head_name(), "lm_head.weight");
        let outer = served(&|raw| {
            let text = Value::Object(raw.clone());
            *raw =
                json!({ "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text })
                    .as_object()
                    .unwrap()
                    .clone();
        });
        let outer = outer.unwrap();
        assert_eq!((outer.hidden_size(), outer.vocab_size()), (32, 300));
        assert!(outer.tied());
        // A setting that DDK would refuse in its own forward pass does not matter here.
        let yarn = served(&|raw| {
            raw.insert("architectures".to_owned(), json!(["LlamaForCausalLM"]));
            raw.insert("rope_scaling".to_owned(), json!({"rope_type": "yarn"}));
        });
        assert_eq!(yarn.unwrap().hidden_size(), 32);
        let capped =
            served(&|raw| drop(raw.insert("final_logit_softcapping".to_owned(), json!(30.0))));
        let error = capped.unwrap_err().to_string();
        assert!(error.contains("final_logit_softcapping `30`"), "{error}");
    }

    /// A size in the file is an i64. Without limits, DDK would allocate, loop over, or multiply by it.
    #[test]
    fn sizes_that_no_model_has_are_refused_before_anything_is_made_of_them() {
        for (key, name, most) in [
            ("vocab_size", "vocabulary size", 1_i64 << 24),
            ("intermediate_size", "MLP width", 1 << 20),
            ("num_hidden_layers", "number of layers", 1 << 12),
            ("max_position_embeddings", "longest sequence", 1 << 30),
            ("head_dim", "head size", 1 << 12),
        ] {
            let with = |size: i64| parse(|raw| drop(raw.insert(key.to_owned(), json!(size))));
            with(most).unwrap();
            for size in [most + 2, i64::MAX - 1] {
                let error = with(size).unwrap_err().to_string();
                assert!(
                    error.contains(&format!("the {name} is {size}, expected at most {most}"))
                        && error.contains("m/config.json"),
                    "{error}"
                );
            }
        }
        for (hidden, heads, said) in [
            (1_i64 << 32, 4, "the hidden size is 4294967296"),
            (
                1 << 20,
                1_i64 << 16,
                "the number of attention heads is 65536",
            ),
        ] {
            let error = parse(|raw| {
                raw.insert("hidden_size".to_owned(), json!(hidden));
                raw.insert("num_attention_heads".to_owned(), json!(heads));
            });
            let error = error.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        // The parameter count still fits if all sizes are at their limits.
        let largest = parse(|raw| {
            for (key, size) in [
                ("vocab_size", 1 << 24),
                ("hidden_size", 1 << 20),
                ("intermediate_size", 1 << 20),
                ("num_attention_heads", 1 << 12),
                ("head_dim", 1 << 12),
            ] {
                raw.insert(key.to_owned(), json!(size));
            }
        })
        .unwrap();
        let (a_layer, layers) = (5 * (1_i64 << 44), 1 << 12);
        assert!(a_layer.checked_mul(layers).is_some());
        assert_eq!(largest.layers(), 2);
        assert!(largest.parameter_count().unwrap() > 2 * (1 << 44));
    }

    /// Runs record the hash: none of these names may change.
    #[test]
    fn the_hash_is_of_named_constants() {
        let hash = |change: &dyn Fn(&mut Map<String, Value>)| parse(change).unwrap().hash();
        let config = parse(|_| ()).unwrap();
        assert_eq!(
            serde_json::to_string(config.design()).unwrap(),
            concat!(
                r#"{"vocab_size":300,"hidden_size":32,"layers":2,"max_positions":2048,"tied":false,"#,
                r#""embedding_scale":null,"positions":{"Rotary":{"theta":500000.0,"scaling":"None"}},"#,
                r#""norm":{"Rms":{"eps":1e-6,"plus_one":false}},"attention":{"heads":4,"num_key_value_heads":4,"#,
                r#""head_dim":8,"projections":{"Separate":{"bias":false}},"output_bias":false,"#,
                r#""qk_norm":null,"scale":null},"#,
                r#""mlp":{"width":64,"activation":"Silu","gated":true,"bias":false}}"#,
            )
        );
        let with = |key: &'static str, value: Value| {
            hash(&move |raw| drop(raw.insert(key.to_owned(), value.clone()))).unwrap()
        };
        let plain = config.hash().unwrap();
        assert_eq!(plain, with("initializer_range", json!(0.5)));
        assert_ne!(plain, with("rms_norm_eps", json!(1e-5)));
    }

    #[test]
    fn a_window_limits_the_length() {
        let of = |architecture: &str, in_use: Option<bool>| {
            let config = parse(|raw| {
                raw.insert("architectures".to_owned(), json!([architecture]));
                raw.insert("sliding_window".to_owned(), json!(64));
                if let Some(in_use) = in_use {
                    raw.insert("use_sliding_window".to_owned(), json!(in_use));
                }
            });
            config.unwrap().max_positions()
        };
        assert_eq!(of("MistralForCausalLM", None), 64);
        assert_eq!(of("Qwen2ForCausalLM", None), 2048);
        assert_eq!(of("Qwen3ForCausalLM", Some(true)), 64);
    }
}
