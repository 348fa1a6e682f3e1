//! Lengths on GPUs. cuDNN builds a plan for each length that its attention has not seen, which takes half a
//! second, so sequences are padded on the right up to a multiple of [`ddk_torch::TILE`]. Attention is causal:
//! what comes before the padding does not change.

use tch::{TchError, Tensor};

/// For each row of a batch the lengths of its parts, which see nothing of each other and whose positions
/// start at 0. The lengths of a row add up to the batch's time.
pub type Parts = [Vec<i64>];

/// Where in their sequences the tokens of a batch are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Position of the first token, where rows have no parts.
    pub(crate) start: i64,
    pub(crate) parts: Option<&'a Parts>,
}

impl<'a> Place<'a> {
    /// At the beginning.
    pub(crate) fn first(parts: Option<&'a Parts>) -> Self {
        Self { start: 0, parts }
    }
}

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
