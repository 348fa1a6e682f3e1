//! A forward pass whose backward pass the caller runs, with or without activation checkpointing.

use ddk_torch::takes_gpu_path;
use tch::{Kind, TchError, Tensor};

use crate::{Model, ModelError, Parts, decoder::Decoder, padding::Padded};

/// Hidden states, and what the backward pass needs.
///
/// Kept activations cost memory in proportion to the number of layers. Activation checkpointing costs one more
/// forward pass: it keeps only the input of each layer and recomputes the layer while computing its gradient. Both
/// give the same gradients.
///
/// The graph leaves out the embedding. A micro-batch adds one row per distinct token to the embedding's gradient,
/// but autograd would allocate a matrix for the whole vocabulary.
#[derive(Debug)]
pub struct Trace<'a> {
    decoder: &'a Decoder,
    padded: Padded,
    /// The embedding rows of the tokens. The graph starts here.
    rows: Tensor,
    hidden: Tensor,
    /// Numbers of the requested layers, from 1.
    numbers: Vec<usize>,
    /// Outputs of the requested layers. They have a graph unless activations are recomputed.
    layers: Vec<Tensor>,
    recomputed: Option<Recomputed>,
}

#[derive(Debug)]
struct Recomputed {
    /// Input of the first layer, with the graph back to the embedding rows.
    embedded: Tensor,
    /// Inputs of all layers, without graphs.
    inputs: Vec<Tensor>,
    /// Input of the final norm. The norm's graph starts here.
    last: Tensor,
}

impl Model {
    /// Computes hidden states from token ids `[batch, time]`. Call [`Trace::backward`] next. `layers` lists the
    /// layers (counted from 1) whose outputs are needed too, because the loss depends on them.
    ///
    /// # Errors
    /// If a layer does not exist, or if libtorch fails.
    pub fn trace<'a>(
        &'a self,
        tokens: &Tensor,
        parts: Option<&Parts>,
        recompute: bool,
        layers: &[usize],
    ) -> Result<Trace<'a>, ModelError> {
        let mut taken = self.take(layers)?;
        let decoder = &self.decoder;
        let padded = decoder.pad(tokens, parts)?;
        let rows = tch::no_grad(|| decoder.look_up(&padded.tokens))?;
        let rows = rows.set_requires_grad(true);
        let (hidden, recomputed) = if recompute {
            let place = padded.place();
            let embedded = decoder.embed(&rows, place)?;
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
            let hidden = decoder.norm(&last)?;
            let recomputed = Recomputed {
                embedded,
                inputs,
                last,
            };
            (hidden, Some(recomputed))
        } else {
            let seen = |number, output: &Tensor| taken.see(number, output);
            (decoder.hidden(&rows, padded.parts(), None, seen)?, None)
        };
        Ok(Trace {
            decoder,
            hidden: padded.cut(&hidden)?,
            layers: taken.into_outputs(&padded)?,
            padded,
            rows,
            numbers: layers.to_vec(),
            recomputed,
        })
    }
}

impl Trace<'_> {
    /// Hidden states after the final norm, `[batch, time, hidden_size]`.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Outputs of the requested layers, each `[batch, time, hidden_size]`.
    pub fn layers(&self) -> &[Tensor] {
        &self.layers
    }

    /// Backpropagates the gradients of the hidden states and of the layers' outputs. Adds to the gradient of every
    /// parameter, and adds the embedding's gradient to `embedding`. Each gradient has the shape of its tensor.
    ///
    /// # Errors
    /// If libtorch fails, for example because a gradient has the wrong shape.
    pub fn backward(
        mut self,
        gradient: &Tensor,
        layers: &[Tensor],
        embedding: &mut Tensor,
    ) -> Result<(), ModelError> {
        match self.recomputed.take() {
            None => back(&self.hidden, gradient, self.layers.iter().zip(layers))?,
            Some(recomputed) => self.back_through_layers(recomputed, gradient, layers)?,
        }
        let rows = self.rows.f_grad()?;
        Ok(add_rows(embedding, &self.padded.tokens, &rows)?)
    }

    /// Backpropagates from the last layer to the first, recomputing each layer.
    fn back_through_layers(
        &self,
        recomputed: Recomputed,
        gradient: &Tensor,
        layers: &[Tensor],
    ) -> Result<(), TchError> {
        let with_layer = |number: usize, mut gradient: Tensor| -> Result<Tensor, TchError> {
            for (of, of_layer) in self.numbers.iter().zip(layers) {
                if *of == number {
                    gradient = gradient.f_add(&self.padded.uncut(of_layer)?)?;
                }
            }
            Ok(gradient)
        };
        back(&self.hidden, gradient, [])?;
        let mut gradient = with_layer(recomputed.inputs.len(), recomputed.last.f_grad()?)?;
        for (index, input) in recomputed.inputs.into_iter().enumerate().rev() {
            let input = input.set_requires_grad(true);
            let place = self.padded.place();
            let output = self.decoder.layer(index, &input, place, None)?;
            back(&output, &gradient, [])?;
            gradient = with_layer(index, input.f_grad()?)?;
        }
        back(&recomputed.embedded, &gradient, [])
    }
}

/// Adds the rows `[B, T, D]` of the tokens `[B, T]` to those tokens' rows of a table `[V, D]`. The order is fixed,
/// so the sums have the same bits each time. The CPU first sums the rows of each token and then adds the sum to the
/// table once. CUDA's kernel for that has a race, so GPUs sort the rows and add them.
fn add_rows(table: &mut Tensor, tokens: &Tensor, rows: &Tensor) -> Result<(), TchError> {
    let _no_grad = tch::no_grad_guard();
    let tokens = tokens.f_to_device(table.device())?.f_flatten(0, -1)?;
    let rows = rows.f_flatten(0, 1)?;
    if takes_gpu_path(table.device()) {
        let _ = table.f_index_put_(&[Some(tokens)], &rows.f_to_kind(table.kind())?, true)?;
        return Ok(());
    }
    let (different, which, _) = tokens.f_internal_unique2(true, true, false)?;
    let sums = Tensor::f_embedding_dense_backward(&rows, &which, different.size1()?, -1, false)?;
    let _ = table.f_index_add_(0, &different, &sums)?;
    Ok(())
}

/// Backpropagates `gradient` from `output`, and the pairs in `more` along with it. The gradient of sum(output *
/// constant) is exactly the constant, and a sum over several outputs backpropagates from all of them at once.
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
