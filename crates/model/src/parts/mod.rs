//! What families are put together from. In names, the letters after the underscore are the shape: B batch, T time,
//! S time with what is cached, D d_model, H heads, K heads of keys and values, E size of a head, F width of the MLP.

mod attention;
mod cast;
mod fused;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub(crate) use attention::{Attention, LayerCache};
pub(crate) use cast::{Cast, cast};
pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use norm::Norm;
pub(crate) use rotary::{Rotary, Tables};
