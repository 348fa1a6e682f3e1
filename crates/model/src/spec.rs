//! Describes a family's decoder: sizes, kinds of parts, and parameter names.

use serde::Serialize;

use crate::ModelError;

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

// Each limit is at least ten times that of the largest published models. The parameter count of any model within
// all limits fits in an i64.
const LARGEST_VOCABULARY: i64 = 1 << 24;
const LARGEST_WIDTH: i64 = 1 << 20;
const MOST_LAYERS: i64 = 1 << 12;
const MOST_POSITIONS: i64 = 1 << 30;
const MOST_HEADS: i64 = 1 << 12;
const LARGEST_HEAD: i64 = 1 << 12;

impl ArchitectureSpec {
    /// See [`crate::ModelConfig::matrices`].
    pub(crate) fn matrices(&self) -> Vec<[i64; 2]> {
        let (attention, width, inner) = (&self.attention, self.hidden_size, self.mlp.width);
        let query = attention.heads * attention.head_dim;
        let key = attention.num_key_value_heads * attention.head_dim;
        let mut matrices = match attention.projections {
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
        self.check_bounds()?;
        let AttentionSpec {
            heads,
            num_key_value_heads,
            head_dim,
            ..
        } = self.attention;
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

    /// Refuses sizes that no model has, before anything is allocated or multiplied by them.
    fn check_bounds(&self) -> Result<(), String> {
        let attention = &self.attention;
        let sizes = [
            ("vocabulary size", self.vocab_size, LARGEST_VOCABULARY),
            ("hidden size", self.hidden_size, LARGEST_WIDTH),
            ("MLP width", self.mlp.width, LARGEST_WIDTH),
            ("number of layers", self.layers, MOST_LAYERS),
            ("longest sequence", self.max_positions, MOST_POSITIONS),
            ("number of attention heads", attention.heads, MOST_HEADS),
            (
                "number of key-value heads",
                attention.num_key_value_heads,
                MOST_HEADS,
            ),
            ("head size", attention.head_dim, LARGEST_HEAD),
        ];
        match sizes.iter().find(|(_, size, most)| size > most) {
            None => Ok(()),
            Some((name, size, most)) => Err(format!(
                "the {name} is {size}, expected at most {most}: is the file damaged?"
            )),
        }
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

/// The head size for a configuration that does not set one.
pub(crate) fn even_share(
    hidden_size: i64,
    heads: i64,
    malformed: impl FnOnce(String) -> ModelError,
) -> Result<i64, ModelError> {
    if hidden_size % heads == 0 {
        Ok(hidden_size / heads)
    } else {
        Err(malformed(format!(
            "the hidden size {hidden_size} is not a multiple of the {heads} heads"
        )))
    }
}
