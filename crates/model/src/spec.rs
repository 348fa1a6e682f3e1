//! Describes a family's decoder: sizes, kinds of parts, and parameter names.

use serde::Serialize;

/// Everything that distinguishes one family's decoder from another's.
///
/// Runs record the hash of its JSON. If you rename a field or variant, keep the old name in the JSON:
/// `#[serde(rename)]`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ArchitectureSpec {
    pub(crate) vocab_size: i64,
    pub(crate) hidden_size: i64,
    pub(crate) layers: i64,
    /// Maximum sequence length.
    pub(crate) max_positions: i64,
    /// Whether the LM head is the embedding.
    pub(crate) tied: bool,
    /// Standard deviation of new weights.
    #[serde(skip)]
    pub(crate) initializer_range: f64,
    /// Scale factor for the embeddings.
    pub(crate) embedding_scale: Option<f64>,
    pub(crate) positions: Positions,
    pub(crate) norm: NormSpec,
    pub(crate) attention: AttentionSpec,
    pub(crate) mlp: MlpSpec,
    #[serde(skip)]
    pub(crate) names: &'static Names,
}

/// Names of the decoder's parts in a checkpoint.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) embedding: &'static str,
    /// Used only if positions are learned.
    pub(crate) positions: &'static str,
    /// Followed by the layer's number.
    pub(crate) layers: &'static str,
    pub(crate) attention_norm: &'static str,
    pub(crate) attention: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) mlp_norm: &'static str,
    pub(crate) mlp: &'static str,
    pub(crate) mlp_up: &'static str,
    pub(crate) mlp_down: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
}

/// How the decoder encodes positions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) enum Positions {
    /// Rotates queries and keys.
    Rotary(RotarySpec),
    /// One learned embedding per position.
    Learned,
}

/// Frequencies of a rotary embedding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct RotarySpec {
    pub(crate) theta: f64,
    pub(crate) scaling: RotaryScaling,
}

/// How the frequencies are scaled for longer sequences.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) enum RotaryScaling {
    None,
    /// Divides all frequencies by the factor.
    Linear {
        factor: f64,
    },
    /// Llama 3: divides the frequencies of long wavelengths by the factor, keeps those of short ones, and
    /// interpolates in between.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
}

/// Kind of norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) enum NormSpec {
    /// Root mean square. With `plus_one`, the file stores the weight minus 1 (Gemma).
    Rms { eps: f64, plus_one: bool },
    /// Mean and variance (LayerNorm), with a bias.
    Layer { eps: f64 },
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct AttentionSpec {
    pub(crate) heads: i64,
    /// Number of key-value heads. Divides `heads`.
    pub(crate) num_key_value_heads: i64,
    pub(crate) head_dim: i64,
    pub(crate) projections: Projections,
    pub(crate) output_bias: bool,
    /// A norm over each head of queries and keys (Qwen3).
    pub(crate) qk_norm: Option<NormSpec>,
    /// Scale factor for the attention logits. Default: `1 / sqrt(head_dim)`.
    pub(crate) scale: Option<f64>,
}

impl AttentionSpec {
    /// Number of query heads, number of key-value heads, and head size.
    pub(crate) fn sizes(&self) -> (i64, i64, i64) {
        (self.heads, self.num_key_value_heads, self.head_dim)
    }

    /// Width of all queries together, and width of all keys (or values) together.
    pub(crate) fn widths(&self) -> (i64, i64) {
        let (heads, num_key_value_heads, head_dim) = self.sizes();
        (heads * head_dim, num_key_value_heads * head_dim)
    }
}

/// How the decoder projects hidden states to queries, keys, and values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) enum Projections {
    /// `q_proj`, `k_proj`, `v_proj`.
    Separate { bias: bool },
    /// One matrix `c_attn` with a bias. Multi-query: all queries, one key, one value. Multi-head: the query, key,
    /// and value of each head in turn.
    Fused,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct MlpSpec {
    pub(crate) width: i64,
    pub(crate) activation: Activation,
    /// `down(activation(gate x) * up x)` instead of `down(activation(up x))`.
    pub(crate) gated: bool,
    pub(crate) bias: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) enum Activation {
    Silu,
    /// The tanh approximation of GELU.
    GeluTanh,
}

impl ArchitectureSpec {
    /// See [`crate::ModelConfig::matrices`].
    pub(crate) fn matrices(&self) -> Vec<[i64; 2]> {
        let (width, inner) = (self.hidden_size, self.mlp.width);
        let (query, key) = self.attention.widths();
        let mut matrices = match self.attention.projections {
            Projections::Separate { .. } => vec![[query, width], [key, width], [key, width]],
            Projections::Fused => vec![[query + 2 * key, width]],
        };
        matrices.extend([[width, query], [inner, width]]);
        if self.mlp.gated {
            matrices.push([inner, width]);
        }
        matrices.push([width, inner]);
        matrices
    }

    /// Checks the constraints on sizes that all families share.
    pub(crate) fn check(&self) -> Result<(), String> {
        let (heads, num_key_value_heads, head_dim) = self.attention.sizes();
        // Refuse sizes that no model has, before anything is allocated or multiplied by them. Each limit is at least
        // ten times that of the largest published models. The parameter count of any model within all limits fits in
        // an i64.
        for (name, size, most) in [
            ("vocabulary size", self.vocab_size, 1 << 24),
            ("hidden size", self.hidden_size, 1 << 20),
            ("MLP width", self.mlp.width, 1 << 20),
            ("number of layers", self.layers, 1 << 12),
            ("longest sequence", self.max_positions, 1 << 30),
            ("number of attention heads", heads, 1 << 12),
            ("number of key-value heads", num_key_value_heads, 1 << 12),
            ("head size", head_dim, 1 << 12),
        ] {
            if size > most {
                return Err(format!(
                    "the {name} is {size}, expected at most {most}: is the file damaged?"
                ));
            }
        }
        if heads % num_key_value_heads != 0 {
            return Err(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {num_key_value_heads}"
            ));
        }
        if matches!(self.positions, Positions::Rotary(_)) && head_dim % 2 != 0 {
            return Err(format!(
                "the head size {head_dim} is odd: a rotary embedding needs an even one"
            ));
        }
        Ok(())
    }

    /// The LM head's name in a checkpoint.
    pub(crate) fn head_name(&self) -> String {
        let part = if self.tied {
            self.names.embedding
        } else {
            self.names.head
        };
        format!("{part}.weight")
    }
}
