//! The head's gradients against autograd on dense logits, and the traps that well-known code falls into.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod case;
mod gradients;
mod traps;
