//! The MLP of a block, gated (Shazeer, "GLU variants improve transformer") or plain.

use tch::{TchError, Tensor};

use super::{Linear, fused};
use crate::{
    ModelError,
    parameters::{Initial, Parameters},
    spec::{Activation, ArchitectureSpec},
};

#[derive(Debug)]
pub(crate) struct Mlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Mlp {
    pub(crate) fn new(
        parameters: &mut Parameters<'_>,
        name: &str,
        design: &ArchitectureSpec,
    ) -> Result<Self, ModelError> {
        let (mlp, names) = (design.mlp, design.names);
        let initial = Initial::Normal(design.initializer_range);
        let mut linear = |part: &str, shape| {
            let name = format!("{name}.{part}");
            Linear::new(parameters, &name, shape, mlp.bias, initial)
        };
        let wide = [mlp.width, design.hidden_size];
        Ok(Self {
            gate: mlp.gated.then(|| linear("gate_proj", wide)).transpose()?,
            up: linear(names.mlp_up, wide)?,
            down: linear(names.mlp_down, [design.hidden_size, mlp.width])?,
            activation: mlp.activation,
        })
    }

    /// `[B, T, D]` to `[B, T, D]`.
    pub(crate) fn forward(&self, x_btd: &Tensor) -> Result<Tensor, TchError> {
        let up_btf = self.up.forward(x_btd)?;
        let inner_btf = match &self.gate {
            Some(gate) => {
                let gate_btf = gate.forward(x_btd)?;
                let product = match self.activation {
                    // SAFETY: the matmuls just created both tensors, and only this function and the graph hold them.
                    Activation::Silu => unsafe { fused::silu_mul(&gate_btf, &up_btf)? },
                    Activation::GeluTanh => None,
                };
                match product {
                    Some(product) => product,
                    None => self.activate(&gate_btf)?.f_mul(&up_btf)?,
                }
            }
            None => self.activate(&up_btf)?,
        };
        self.down.forward(&inner_btf)
    }

    /// See [`crate::Model::weights_changed`].
    pub(crate) fn weights_changed(&self) {
        let all = self.gate.iter().chain([&self.up, &self.down]);
        all.for_each(Linear::weights_changed);
    }

    fn activate(&self, x: &Tensor) -> Result<Tensor, TchError> {
        match self.activation {
            Activation::Silu => x.f_silu(),
            Activation::GeluTanh => x.f_gelu("tanh"),
        }
    }
}
