//! A forward whose backward is called by hand, with or without the activations of every layer kept.

use tch::{Kind, TchError, Tensor};

use crate::{
    Model, ModelError, Parts,
    decoder::{Decoder, Place},
    model::Taken,
};

/// Hidden states, and what is needed to go back from them.
///
/// Kept activations cost memory in proportion to the layers. Recomputed ones cost one more forward: only the input of each
/// layer is kept, and a layer's inside exists while its own gradient is computed. Both give the same gradients.
#[derive(Debug)]
pub struct Trace<'a> {
    hidden: Tensor,
    /// Numbers of the layers whose outputs are wanted, from 1.
    numbers: Vec<usize>,
    /// Their outputs: with a graph where nothing is recomputed.
    layers: Vec<Tensor>,
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
    /// Token ids `[batch, time]` to hidden states, to be followed by [`Trace::backward`]. `layers` (counted from 1): those whose
    /// outputs are wanted as well, because the loss depends on them.
    pub fn trace<'a>(
        &'a self,
        tokens: &Tensor,
        parts: Option<&'a Parts>,
        recompute: bool,
        layers: &[usize],
    ) -> Result<Trace<'a>, ModelError> {
        let numbers = layers.to_vec();
        if !recompute {
            let (hidden, layers) = self.hidden_and_layers(tokens, parts, layers)?;
            return Ok(Trace {
                hidden,
                numbers,
                layers,
                recomputed: None,
            });
        }
        self.check_layers(layers)?;
        let mut taken = Taken::new(layers);
        let decoder = self.decoder();
        let place = Place::first(parts);
        let embedded = decoder.embed(tokens, place)?;
        let mut inputs = Vec::with_capacity(decoder.layers());
        let mut x_btd = embedded.detach();
        {
            let _no_grad = tch::no_grad_guard();
            for index in 0..decoder.layers() {
                let output = decoder.layer(index, &x_btd, place, None)?;
                taken.see(index + 1, &output);
                inputs.push(std::mem::replace(&mut x_btd, output));
            }
        }
        let last = x_btd.set_requires_grad(true);
        Ok(Trace {
            hidden: decoder.norm(&last)?,
            numbers,
            layers: taken.into_outputs(),
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

    /// What comes out of the layers that were asked for, each `[batch, time, hidden_size]`.
    pub fn layers(&self) -> &[Tensor] {
        &self.layers
    }

    /// Adds to the gradient of every parameter, from the gradient of the hidden states (of their shape) and those of the layers.
    pub fn backward(self, gradient: &Tensor, layers: &[Tensor]) -> Result<(), ModelError> {
        let Some(recomputed) = self.recomputed else {
            let outputs = self.layers.iter().zip(layers);
            back(&self.hidden, gradient, outputs)?;
            return Ok(());
        };
        let with_layer = |number: usize, mut gradient: Tensor| -> Result<Tensor, TchError> {
            for (_, of_layer) in self
                .numbers
                .iter()
                .zip(layers)
                .filter(|(of, _)| **of == number)
            {
                gradient = gradient.f_add(of_layer)?;
            }
            Ok(gradient)
        };
        back(&self.hidden, gradient, [])?;
        let mut gradient = with_layer(recomputed.inputs.len(), recomputed.last.f_grad()?)?;
        for (index, input) in recomputed.inputs.into_iter().enumerate().rev() {
            let input = input.set_requires_grad(true);
            let output = recomputed
                .decoder
                .layer(index, &input, recomputed.place, None)?;
            back(&output, &gradient, [])?;
            gradient = with_layer(index, input.f_grad()?)?;
        }
        back(&recomputed.embedded, &gradient, [])?;
        Ok(())
    }
}

/// The backward of sum(output * constant) is exactly the given gradient; the sum over several outputs goes back from all at once.
fn back<'a>(
    output: &Tensor,
    gradient: &Tensor,
    more: impl IntoIterator<Item = (&'a Tensor, &'a Tensor)>,
) -> Result<(), TchError> {
    let mut sum = output.f_mul(gradient)?.f_sum(Kind::Float)?;
    for (output, gradient) in more {
        sum = sum.f_add(&output.f_mul(gradient)?.f_sum(Kind::Float)?)?;
    }
    sum.f_backward()
}
