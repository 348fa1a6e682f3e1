//! The parts that families build their decoders from. In variable names, the letters after the underscore are the
//! shape: B batch, T time, S time including cached positions, D d_model, H heads, K key-value heads, E head size, F
//! MLP width.

mod attention;
mod cast;
mod check;
mod fused;
mod kernels;
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
