//! A forward whose backward is called by hand, with or without the activations of every layer kept.

use tch::{Kind, TchError, Tensor};

use crate::{
    Model, ModelError, Parts,
    decoder::{Decoder, Place},
};

/// Hidden states, and what is needed to go back from them.
///
/// Kept activations cost memory in proportion to the layers. Recomputed ones cost one more forward: only the input of each
/// layer is kept, and a layer's inside exists while its own gradient is computed. Both give the same gradients.
#[derive(Debug)]
pub struct Trace<'a> {
    hidden: Tensor,
    recomputed: Option<Recomputed<'a>>,
}

#[derive(Debug)]
struct Recomputed<'a> {
    decoder: &'a Decoder,
    place: Place<'a>,
    /// Input of the first layer, with the graph of the embedding.
    embedded: Tensor,
    /// Inputs of all layers, without graphs.
    inputs: Vec<Tensor>,
    /// Input of the final norm: where the norm's graph begins.
    last: Tensor,
}

impl Model {
    /// Token ids `[batch, time]` to hidden states, to be followed by [`Trace::backward`].
    pub fn trace<'a>(
        &'a self,
        tokens: &Tensor,
        parts: Option<&'a Parts>,
        recompute: bool,
    ) -> Result<Trace<'a>, ModelError> {
        if !recompute {
            return Ok(Trace {
                hidden: self.hidden(tokens, parts)?,
                recomputed: None,
            });
        }
        let decoder = self.decoder();
        let place = Place::first(parts);
        let embedded = decoder.embed(tokens, place)?;
        let mut inputs = Vec::with_capacity(decoder.layers());
        let mut x_btd = embedded.detach();
        {
            let _no_grad = tch::no_grad_guard();
            for index in 0..decoder.layers() {
                let output = decoder.layer(index, &x_btd, place, None)?;
                inputs.push(std::mem::replace(&mut x_btd, output));
            }
        }
        let last = x_btd.set_requires_grad(true);
        Ok(Trace {
            hidden: decoder.norm(&last)?,
            recomputed: Some(Recomputed {
                decoder,
                place,
                embedded,
                inputs,
                last,
            }),
        })
    }
}

impl Trace<'_> {
    /// `[batch, time, hidden_size]`, after the final norm.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Adds to the gradient of every parameter, from the gradient of the hidden states (of their shape).
    pub fn backward(self, gradient: &Tensor) -> Result<(), ModelError> {
        back(&self.hidden, gradient)?;
        let Some(recomputed) = self.recomputed else {
            return Ok(());
        };
        let mut gradient = recomputed.last.f_grad()?;
        for (index, input) in recomputed.inputs.into_iter().enumerate().rev() {
            let input = input.set_requires_grad(true);
            let output = recomputed
                .decoder
                .layer(index, &input, recomputed.place, None)?;
            back(&output, &gradient)?;
            gradient = input.f_grad()?;
        }
        back(&recomputed.embedded, &gradient)?;
        Ok(())
    }
}

/// The backward of sum(output * constant) is exactly the given gradient.
fn back(output: &Tensor, gradient: &Tensor) -> Result<(), TchError> {
    output.f_mul(gradient)?.f_sum(Kind::Float)?.f_backward()
}
