//! Weights in the dtype of matrix products.

use std::cell::RefCell;

use tch::{Kind, TchError, Tensor};

/// A weight in the dtype of products: cast once, and kept until the weight has changed.
///
/// The cast is part of the graph, so gradients reach the weight in its own dtype, micro-batch by micro-batch.
#[derive(Debug, Default)]
pub(crate) struct Cast(RefCell<Option<Tensor>>);

impl Cast {
    /// The weight itself if it has the dtype.
    pub(crate) fn of(&self, weight: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
        if weight.kind() == kind {
            return Ok(weight.shallow_clone());
        }
        let mut kept = self.0.borrow_mut();
        let cast = match kept.take().filter(|kept| kept.kind() == kind) {
            Some(cast) => cast,
            // With a graph even where none is recorded: a forward that records one may come next.
            None => tch::with_grad(|| weight.f_to_kind(kind))?,
        };
        *kept = Some(cast.shallow_clone());
        Ok(cast)
    }

    /// The weight has changed.
    pub(crate) fn forget(&self) {
        self.0.take();
    }
}

/// The tensor in dtype `kind`: itself where it has that dtype already.
pub(crate) fn cast(tensor: &Tensor, kind: Kind) -> Result<Tensor, TchError> {
    if tensor.kind() == kind {
        Ok(tensor.shallow_clone())
    } else {
        tensor.f_to_kind(kind)
    }
}
