//! Casts weights to the dtype of matmuls.

use std::cell::RefCell;

use tch::{Kind, TchError, Tensor};

/// A weight in the dtype of matmuls: cast once, and kept until the weight changes.
///
/// The cast is part of the graph, so the gradients of each micro-batch reach the weight in its own dtype.
#[derive(Debug, Default)]
pub(crate) struct Cast(RefCell<Option<Tensor>>);

impl Cast {
    /// Returns the weight in dtype `kind`, or the weight itself if it already has that dtype.
    pub(crate) fn of(&self, weight: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
        if weight.kind() == kind {
            return Ok(weight.shallow_clone());
        }
        let mut kept = self.0.borrow_mut();
        let cast = match kept.take().filter(|kept| kept.kind() == kind) {
            Some(cast) => cast,
            // Record a graph even in no-grad mode: the next forward pass may need it.
            None => tch::with_grad(|| weight.f_to_kind(kind))?,
        };
        *kept = Some(cast.shallow_clone());
        Ok(cast)
    }

    /// Drops the cast. Call it after the weight changes.
    pub(crate) fn forget(&self) {
        self.0.take();
    }
}

/// Returns the tensor in dtype `kind`, or the tensor itself if it already has that dtype.
pub(crate) fn cast(tensor: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
    if tensor.kind() == kind {
        Ok(tensor.shallow_clone())
    } else {
        tensor.f_to_kind(kind)
    }
}

/// Works like [`cast`], for a bias that a layer may not have.
pub(super) fn cast_bias(bias: &Option<Tensor>, kind: Kind) -> Result<Option<Tensor>, TchError> {
    bias.as_ref().map(|bias| cast(bias, kind)).transpose()
}
