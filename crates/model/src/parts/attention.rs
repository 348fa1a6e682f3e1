//! Causal self-attention with grouped queries (Ainslie et al., "GQA") and rotary positions.

use tch::{TchError, Tensor};

use super::{linear, rotary::rotate};
use crate::{
    ModelError,
    parameters::{Initial, Parameters},
};

/// Sizes of an attention.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) hidden_size: i64,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
}

#[derive(Debug)]
pub(crate) struct Attention {
    shape: AttentionShape,
    q_proj: Tensor,
    k_proj: Tensor,
    v_proj: Tensor,
    o_proj: Tensor,
}

impl Attention {
    pub(crate) fn new(
        parameters: &mut Parameters<'_>,
        name: &str,
        shape: AttentionShape,
        initial: Initial,
    ) -> Result<Self, ModelError> {
        let AttentionShape {
            hidden_size,
            heads,
            kv_heads,
            head_dim,
        } = shape;
        let mut get = |part: &str, rows, columns| {
            parameters.get(format!("{name}.{part}.weight"), &[rows, columns], initial)
        };
        Ok(Self {
            shape,
            q_proj: get("q_proj", heads * head_dim, hidden_size)?,
            k_proj: get("k_proj", kv_heads * head_dim, hidden_size)?,
            v_proj: get("v_proj", kv_heads * head_dim, hidden_size)?,
            o_proj: get("o_proj", hidden_size, heads * head_dim)?,
        })
    }

    /// `[B, T, D]` to `[B, T, D]`; `rotary` holds cosines and sines `[T, E]`. No mask is made: attention is causal.
    pub(crate) fn forward(
        &self,
        x_btd: &Tensor,
        rotary: &(Tensor, Tensor),
    ) -> Result<Tensor, TchError> {
        let AttentionShape {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.shape;
        let (batch, time) = (x_btd.size()[0], x_btd.size()[1]);
        let split = |weight: &Tensor, heads: i64| {
            linear(x_btd, weight)?
                .f_view([batch, time, heads, head_dim])?
                .f_transpose(1, 2)
        };
        let (cos, sin) = rotary;
        let q_bhte = rotate(&split(&self.q_proj, heads)?, cos, sin)?;
        let k_bkte = rotate(&split(&self.k_proj, kv_heads)?, cos, sin)?;
        let v_bkte = split(&self.v_proj, kv_heads)?;
        let mixed_bhte = Tensor::f_scaled_dot_product_attention(
            &q_bhte,
            &k_bkte,
            &v_bkte,
            None::<&Tensor>,
            0.0,
            true,
            None,
            heads != kv_heads,
        )?;
        let mixed_btd = mixed_bhte
            .f_transpose(1, 2)?
            .f_reshape([batch, time, heads * head_dim])?;
        linear(&mixed_btd, &self.o_proj)
    }
}
