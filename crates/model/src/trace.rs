//! A forward whose backward is called by hand, with or without the activations of every layer kept.

use ddk_torch::takes_gpu_path;
use tch::{Kind, TchError, Tensor};

use crate::{Model, ModelError, Parts, decoder::Decoder, model::Taken, padding::Padded};

/// Hidden states, and what is needed to go back from them.
///
/// Kept activations cost memory in proportion to the layers. Recomputed ones cost one more forward: only the
/// input of each layer is kept, and a layer's inside exists while its own gradient is computed. Both give the
/// same gradients.
///
/// The embedding is left out of the graph: what a micro-batch adds to its gradient is as many rows as it has
/// different tokens, for which autograd would make a matrix of the whole vocabulary.
#[derive(Debug)]
pub struct Trace<'a> {
    decoder: &'a Decoder,
    padded: Padded,
    /// The rows of the embedding that they choose: where the graph begins.
    rows: Tensor,
    hidden: Tensor,
    /// Numbers of the layers whose outputs are wanted, from 1.
    numbers: Vec<usize>,
    /// Their outputs: with a graph where nothing is recomputed.
    layers: Vec<Tensor>,
    recomputed: Option<Recomputed>,
}

#[derive(Debug)]
struct Recomputed {
    /// Input of the first layer, with the graph back to the rows.
    embedded: Tensor,
    /// Inputs of all layers, without graphs.
    inputs: Vec<Tensor>,
    /// Input of the final norm: where the norm's graph begins.
    last: Tensor,
}

impl Model {
    /// Computes hidden states from token ids `[batch, time]`, to be followed by [`Trace::backward`]. `layers` (counted
    /// from 1) names the layers whose outputs are needed too, because the loss depends on them.
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
        self.check_layers(layers)?;
        let mut taken = Taken::new(layers);
        let decoder = self.decoder();
        let padded = decoder.pad(tokens, parts)?;
        let rows = {
            let _no_grad = tch::no_grad_guard();
            decoder.look_up(&padded.tokens)?
        };
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
            (decoder.hidden_of(&rows, padded.parts(), None, seen)?, None)
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
    /// `[batch, time, hidden_size]`, after the final norm.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// What comes out of the layers that were asked for, each `[batch, time, hidden_size]`.
    pub fn layers(&self) -> &[Tensor] {
        &self.layers
    }

    /// Backpropagates the gradients of the hidden states and of the layers' outputs, and adds to every parameter's
    /// gradient. Adds the embedding's gradient to `embedding`. Each gradient has the shape of its tensor.
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
        Ok(add_rows(
            embedding,
            &self.padded.tokens,
            &self.rows.f_grad()?,
        )?)
    }

    /// From the last layer to the first, each computed again.
    fn back_through_layers(
        &self,
        recomputed: Recomputed,
        gradient: &Tensor,
        layers: &[Tensor],
    ) -> Result<(), TchError> {
        let with_layer = |number: usize, mut gradient: Tensor| -> Result<Tensor, TchError> {
            for (_, of_layer) in self
                .numbers
                .iter()
                .zip(layers)
                .filter(|(of, _)| **of == number)
            {
                gradient = gradient.f_add(&self.padded.uncut(of_layer)?)?;
            }
            Ok(gradient)
        };
        back(&self.hidden, gradient, [])?;
        let mut gradient = with_layer(recomputed.inputs.len(), recomputed.last.f_grad()?)?;
        for (index, input) in recomputed.inputs.into_iter().enumerate().rev() {
            let input = input.set_requires_grad(true);
            let output = self
                .decoder
                .layer(index, &input, self.padded.place(), None)?;
            back(&output, &gradient, [])?;
            gradient = with_layer(index, input.f_grad()?)?;
        }
        back(&recomputed.embedded, &gradient, [])
    }
}

/// Adds the rows `[B, T, D]` of the tokens `[B, T]` to their rows of a table `[V, D]`, in one order, so that
/// sums are the same bits each time. On the CPU rows are added up for each token first, then to the table
/// once. CUDA's kernel for that has a race; there they are sorted and added.
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

/// The backward of sum(output * constant) is exactly the given gradient; the sum over several outputs goes
/// back from all at once.
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
