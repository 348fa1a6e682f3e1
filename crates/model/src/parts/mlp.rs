//! Gated MLP (Shazeer, "GLU variants improve transformer"): SwiGLU.

use tch::{TchError, Tensor};

use super::linear;
use crate::{
    ModelError,
    parameters::{Initial, Parameters},
};

#[derive(Debug)]
pub(crate) struct GatedMlp {
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
}

impl GatedMlp {
    pub(crate) fn new(
        parameters: &mut Parameters<'_>,
        name: &str,
        hidden_size: i64,
        intermediate_size: i64,
        initial: Initial,
    ) -> Result<Self, ModelError> {
        let mut get = |part: &str, rows, columns| {
            parameters.get(format!("{name}.{part}.weight"), &[rows, columns], initial)
        };
        Ok(Self {
            gate_proj: get("gate_proj", intermediate_size, hidden_size)?,
            up_proj: get("up_proj", intermediate_size, hidden_size)?,
            down_proj: get("down_proj", hidden_size, intermediate_size)?,
        })
    }

    /// `[B, T, D]` to `[B, T, D]`.
    pub(crate) fn forward(&self, x_btd: &Tensor) -> Result<Tensor, TchError> {
        let gate_btf = linear(x_btd, &self.gate_proj)?.f_silu()?;
        let up_btf = linear(x_btd, &self.up_proj)?;
        linear(&gate_btf.f_mul(&up_btf)?, &self.down_proj)
    }
}
