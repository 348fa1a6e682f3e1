//! Root-mean-square norm (Zhang and Sennrich, 2019).

use tch::{TchError, Tensor};

use crate::{
    ModelError,
    parameters::{Initial, Parameters},
};

#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(crate) fn new(
        parameters: &mut Parameters<'_>,
        name: &str,
        width: i64,
        eps: f64,
    ) -> Result<Self, ModelError> {
        let weight = parameters.get(format!("{name}.weight"), &[width], Initial::Ones)?;
        Ok(Self { weight, eps })
    }

    /// `[.., D]` to `[.., D]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        x.f_rms_norm(self.weight.size(), Some(&self.weight), self.eps)
    }
}
