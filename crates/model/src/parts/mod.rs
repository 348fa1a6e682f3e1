//! What families are put together from. In names, the letters after the underscore are the shape: B batch, T time,
//! D d_model, H heads, K heads of keys and values, E size of a head, F width of the MLP.

mod attention;
mod mlp;
mod norm;
mod rotary;

pub(crate) use attention::{Attention, AttentionShape};
pub(crate) use mlp::GatedMlp;
pub(crate) use norm::RmsNorm;
pub(crate) use rotary::Rotary;

use tch::{TchError, Tensor};

/// `x W^T`, the weight as `[out, in]`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    x.f_linear(weight, None::<&Tensor>)
}
