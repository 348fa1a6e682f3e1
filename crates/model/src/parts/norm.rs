//! Norms: root mean square (Zhang and Sennrich, 2019) and LayerNorm (Ba et al., 2016).

use tch::{Kind, TchError, Tensor};

use super::{cast, cast::cast_bias, fused};
use crate::{
    ModelError,
    parameters::{Initial, Parameters},
    spec::NormSpec,
};

#[derive(Debug)]
pub(crate) struct Norm {
    design: NormSpec,
    /// `[D]`.
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Norm {
    pub(crate) fn new(
        parameters: &mut Parameters<'_>,
        name: &str,
        width: i64,
        design: NormSpec,
    ) -> Result<Self, ModelError> {
        let initial = match design {
            NormSpec::Rms { plus_one: true, .. } => Initial::Zeros,
            _ => Initial::Ones,
        };
        let weight = parameters.get(format!("{name}.weight"), &[width], initial)?;
        let has_bias = matches!(design, NormSpec::Layer { .. });
        let bias = || parameters.get(format!("{name}.bias"), &[width], Initial::Zeros);
        let bias = has_bias.then(bias).transpose()?;
        Ok(Self {
            design,
            weight,
            bias,
        })
    }

    /// Adds two tensors, and returns their sum and its norm.
    pub(crate) fn of_sum(&self, x: &Tensor, added: &Tensor) -> Result<[Tensor; 2], TchError> {
        if let NormSpec::Rms {
            eps,
            plus_one: false,
        } = self.design
        {
            let weight = cast(&self.weight, x.kind())?;
            // SAFETY: as in `forward`.
            if let Some(both) = unsafe { fused::add_rms_norm([x, added], &weight, eps)? } {
                return Ok(both);
            }
        }
        let sum = x.f_add(added)?;
        let normed = self.forward(&sum)?;
        Ok([sum, normed])
    }

    /// `[.., D]` to `[.., D]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, TchError> {
        let width = self.weight.size();
        match self.design {
            // Round 1 + w once, at the end, as the reference does.
            NormSpec::Rms { eps, plus_one } if plus_one => {
                let weight = cast(&self.weight, Kind::Float)?.f_add_scalar(1.0)?;
                let normed = cast(x, Kind::Float)?.f_rms_norm(width, Some(&weight), eps)?;
                cast(&normed, x.kind())
            }
            NormSpec::Rms { eps, .. } => {
                let weight = cast(&self.weight, x.kind())?;
                // SAFETY: activations are written once, when they are created. Only the thread that computes with a
                // model writes to its weights, and no thread writes to `SharedWeights` weights.
                match unsafe { fused::rms_norm(x, &weight, eps)? } {
                    Some(normed) => Ok(normed),
                    None => x.f_rms_norm(width, Some(&weight), eps),
                }
            }
            NormSpec::Layer { eps } => {
                let weight = cast(&self.weight, x.kind())?;
                let bias = cast_bias(&self.bias, x.kind())?;
                x.f_layer_norm(width, Some(&weight), bias.as_ref(), eps, true)
            }
        }
    }
}
