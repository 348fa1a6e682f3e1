//! Lengths on GPUs. cuDNN builds a plan for each length that its attention has not seen, which takes half a
//! second, so sequences are padded on the right up to a multiple of [`ddk_torch::TILE`]. Attention is causal:
//! what comes before the padding does not change.

use tch::{TchError, Tensor};

use crate::{Parts, decoder::Place};

/// Tokens as a decoder takes them.
#[derive(Debug)]
pub(crate) struct Padded {
    /// `[B, T]`, padding included.
    pub(crate) tokens: Tensor,
    /// Padding is a part of its own.
    parts: Option<Vec<Vec<i64>>>,
    /// Positions that are no padding.
    time: i64,
}

impl Padded {
    /// Tokens `[B, time]` padded to `length`, which is at least that.
    pub(crate) fn new(
        tokens: &Tensor,
        parts: Option<&Parts>,
        length: i64,
    ) -> Result<Self, TchError> {
        let time = tokens.size()[1];
        let padding = length - time;
        let tokens = match padding {
            0 => tokens.shallow_clone(),
            _ => tokens.f_constant_pad_nd([0, padding])?,
        };
        let parts = parts.map(|rows| {
            let mut rows = rows.to_vec();
            if padding > 0 {
                rows.iter_mut().for_each(|row| row.push(padding));
            }
            rows
        });
        Ok(Self {
            tokens,
            parts,
            time,
        })
    }

    pub(crate) fn parts(&self) -> Option<&Parts> {
        self.parts.as_deref()
    }

    pub(crate) fn place(&self) -> Place<'_> {
        Place::first(self.parts())
    }

    /// Hidden states `[B, T, D]` without those of the padding.
    pub(crate) fn cut(&self, x_btd: &Tensor) -> Result<Tensor, TchError> {
        if self.tokens.size()[1] == self.time {
            // Not even a view: its backward would copy.
            Ok(x_btd.shallow_clone())
        } else {
            x_btd.f_narrow(1, 0, self.time)
        }
    }

    /// Gradients of what [`Self::cut`] gave, `[B, time, D]`, with zeros for the padding.
    pub(crate) fn uncut(&self, gradient_btd: &Tensor) -> Result<Tensor, TchError> {
        let padding = self.tokens.size()[1] - self.time;
        match padding {
            0 => Ok(gradient_btd.shallow_clone()),
            _ => gradient_btd.f_constant_pad_nd([0, 0, 0, padding]),
        }
    }
}
