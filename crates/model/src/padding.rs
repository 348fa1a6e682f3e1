//! Pads sequences on GPUs. cuDNN builds a plan for each new attention length, which takes half a second, so
//! sequences are padded on the right to a multiple of [`ddk_torch::TILE`]. Attention is causal, so the padding does
//! not change the positions before it.

use tch::{TchError, Tensor};

/// For each sequence of a batch, the lengths of its parts. Parts do not attend to each other, and each starts at
/// position 0. The lengths add up to the time dimension of the batch.
pub type Parts = [Vec<i64>];

/// Positions of the tokens of a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Position of the first token, if the sequences have no parts.
    pub(crate) start: i64,
    pub(crate) parts: Option<&'a Parts>,
}

/// Tokens padded for a decoder.
#[derive(Debug)]
pub(crate) struct Padded {
    /// `[B, T]`, padding included.
    pub(crate) tokens: Tensor,
    /// The padding is a separate part.
    parts: Option<Vec<Vec<i64>>>,
    /// Number of positions without padding.
    time: i64,
}

impl Padded {
    /// Pads tokens `[B, time]` to `length`, which is at least `time`.
    pub(crate) fn new(
        tokens: &Tensor,
        parts: Option<&Parts>,
        length: i64,
    ) -> Result<Self, TchError> {
        let time = tokens.size()[1];
        let padding = length - time;
        let (mut tokens, mut parts) = (tokens.shallow_clone(), parts.map(<[_]>::to_vec));
        if padding > 0 {
            tokens = tokens.f_constant_pad_nd([0, padding])?;
            parts.iter_mut().flatten().for_each(|row| row.push(padding));
        }
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
        Place {
            start: 0,
            parts: self.parts(),
        }
    }

    /// Removes the padding from hidden states `[B, T, D]`.
    pub(crate) fn cut(&self, x_btd: &Tensor) -> Result<Tensor, TchError> {
        if self.tokens.size()[1] == self.time {
            // Avoid a view: its backward pass would copy.
            Ok(x_btd.shallow_clone())
        } else {
            x_btd.f_narrow(1, 0, self.time)
        }
    }

    /// Extends the gradients of the result of [`Self::cut`], `[B, time, D]`, with zeros for the padding.
    pub(crate) fn uncut(&self, gradient_btd: &Tensor) -> Result<Tensor, TchError> {
        let padding = self.tokens.size()[1] - self.time;
        match padding {
            0 => Ok(gradient_btd.shallow_clone()),
            _ => gradient_btd.f_constant_pad_nd([0, 0, 0, padding]),
        }
    }
}
