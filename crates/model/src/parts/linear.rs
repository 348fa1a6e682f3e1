//! A linear layer: `x W^T + b`.

use tch::{TchError, Tensor};

use super::{Cast, cast::cast_bias};
use crate::{
    ModelError,
    parameters::{Initial, Parameters},
};

#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`.
    weight: Tensor,
    /// The weight, cast for matmuls.
    cast: Cast,
    /// `[out]`.
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(
        parameters: &mut Parameters<'_>,
        name: &str,
        [out, input]: [i64; 2],
        bias: bool,
        initial: Initial,
    ) -> Result<Self, ModelError> {
        let weight = parameters.get(format!("{name}.weight"), &[out, input], initial)?;
        let bias = bias
            .then(|| parameters.get(format!("{name}.bias"), &[out], Initial::Zeros))
            .transpose()?;
        Ok(Self {
            weight,
            cast: Cast::default(),
            bias,
        })
    }

    /// `[.., in]` to `[.., out]`, in the dtype of `x`. Master weights of another dtype are cast for the matmul.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let kind = x.kind();
        let bias = cast_bias(&self.bias, kind)?;
        x.f_linear(&self.cast.of(&self.weight, kind)?, bias.as_ref())
    }

    /// See [`crate::Model::weights_changed`].
    pub(crate) fn weights_changed(&self) {
        self.cast.forget();
    }
}
