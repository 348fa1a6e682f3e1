//! Computes the floating-point operations of a forward pass from the shape of the model.

use crate::ModelConfig;

/// Floating-point operations of a model's matmuls. A multiplication with its addition counts as two.
///
/// Norms, activations, rotations, and softmaxes are left out, as is usual: they cost under one percent of the
/// matmuls. Attention is causal, so a text of T tokens has T (T + 1) / 2 query-key pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flops {
    /// Operations per token in the projections and MLPs of all layers.
    per_token: u64,
    /// Operations per query-key pair in all layers: their dot product, and the weighted value.
    per_pair: u64,
    /// Operations per logit.
    per_logit: u64,
}

impl ModelConfig {
    /// Returns the operations of a forward pass of this model.
    pub fn flops(&self) -> Flops {
        let (design, size) = (self.design(), i64::unsigned_abs);
        let (layers, (queries, _)) = (size(design.layers), design.attention.widths());
        let weights: i64 = design.matrices().iter().map(|[out, of]| out * of).sum();
        Flops {
            per_token: 2 * layers * size(weights),
            per_pair: 4 * layers * size(queries),
            per_logit: 2 * size(design.hidden_size),
        }
    }

    /// Returns the shapes of one layer's matrices, each `[out, in]`, in the order in which a forward pass
    /// multiplies by them.
    pub fn matrices(&self) -> Vec<[i64; 2]> {
        self.design().matrices()
    }
}

impl Flops {
    /// Counts the operations from token ids to hidden states, for separate texts of these lengths.
    pub fn hidden(&self, lengths: impl IntoIterator<Item = u64>) -> f64 {
        let of_text = |length: u64| {
            let (tokens, pairs) = (length as f64, (length * (length + 1) / 2) as f64);
            tokens * self.per_token as f64 + pairs * self.per_pair as f64
        };
        lengths.into_iter().map(of_text).sum()
    }

    /// Width of the hidden states.
    pub fn width(&self) -> u64 {
        self.per_logit / 2
    }

    /// Counts the operations from the hidden states of `positions` positions to logits of `columns` columns.
    pub fn head(&self, positions: u64, columns: u64) -> f64 {
        (positions * columns) as f64 * self.per_logit as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Architecture;

    #[test]
    fn the_products_of_a_small_model_are_counted_by_hand() {
        let config = ModelConfig::llama(
            Architecture {
                vocab_size: 100,
                hidden_size: 8,
                intermediate_size: 12,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                num_key_value_heads: 1,
                max_position_embeddings: 32,
                rope_theta: 1e4,
                tie_word_embeddings: true,
            },
            None,
        );
        let flops = config.unwrap().flops();
        // One layer: q 8 x 8, k and v 8 x 4 each, o 8 x 8, three matrices of 8 x 12: 480 weights.
        assert_eq!(flops.hidden([1]), 2.0 * 2.0 * 480.0 + 64.0);
        // One pair: 2 heads of size 4, once for the logit and once for the value, in 2 layers.
        assert_eq!(flops.hidden([3, 2]), 5.0 * 1920.0 + (6.0 + 3.0) * 64.0);
        assert_eq!(flops.head(5, 10), 5.0 * 10.0 * 16.0);
    }
}
