//! Compares the head's gradients with autograd on dense logits, and tests the traps that well-known code falls
//! into.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod case;
mod gradients;
mod traps;
