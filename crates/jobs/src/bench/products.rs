//! Times the matmuls of a step alone. A step cannot be faster than its matmuls.

use std::time::Instant;

use ddk_model::ModelConfig;
use ddk_torch::{TorchError, synchronize};
use tch::{Device, Kind, TchError, Tensor};

/// How often each matmul is timed.
const ROUNDS: usize = 5;

/// The matmuls in one model's part of a step.
pub(super) struct Products<'a> {
    pub(super) model: &'a ModelConfig,
    /// Tokens per sequence.
    pub(super) length: i64,
    /// Positions per micro-batch, and micro-batches per step.
    pub(super) positions: i64,
    pub(super) micro_batches: f64,
    /// Positions whose logits are computed at a time, and the number of logit columns.
    pub(super) chunk: i64,
    pub(super) columns: i64,
    pub(super) kind: Kind,
    pub(super) device: Device,
}

impl Products<'_> {
    /// Seconds of a step's forward pass through all layers, on the threads of the calling worker.
    pub(super) fn forward(&self) -> Result<f64, TorchError> {
        self.in_layers(|matrix| self.product(self.positions, matrix), 1.0)
    }

    /// Seconds of the backward pass.
    pub(super) fn backward(&self) -> Result<f64, TorchError> {
        self.in_layers(|matrix| self.gradients(self.positions, matrix), 2.0)
    }

    /// Seconds per step. `of_matrix` times one matrix of a layer. `attentions`: cost of a layer's attention as a
    /// multiple of that in a forward pass.
    fn in_layers(
        &self,
        of_matrix: impl Fn([i64; 2]) -> Result<f64, TorchError>,
        attentions: f64,
    ) -> Result<f64, TorchError> {
        let matrices = self.model.matrices().into_iter().map(of_matrix);
        let of_layer = matrices.sum::<Result<f64, _>>()? + attentions * self.attention()?;
        Ok(of_layer * self.model.layers() as f64 * self.micro_batches)
    }

    /// Seconds of a step's logits.
    pub(super) fn logits(&self) -> Result<f64, TorchError> {
        Ok(self.chunks() * self.product(self.chunk, self.head())?)
    }

    /// Seconds of their gradients.
    pub(super) fn logits_backward(&self) -> Result<f64, TorchError> {
        Ok(self.chunks() * self.gradients(self.chunk, self.head())?)
    }

    /// Shape of the LM head, in the columns that are used.
    fn head(&self) -> [i64; 2] {
        [self.columns, self.model.hidden_size()]
    }

    fn chunks(&self) -> f64 {
        self.positions as f64 / self.chunk as f64 * self.micro_batches
    }

    /// Seconds of one layer's attention matmuls: queries with keys, and attention weights with values. Attention is
    /// causal, so it needs half of the full squares.
    fn attention(&self) -> Result<f64, TorchError> {
        let _no_grad = tch::no_grad_guard();
        let (heads, _, width) = self.model.heads();
        let (count, length) = (self.positions / self.length * heads, self.length);
        let [queries, keys, values] = [(); 3].map(|()| self.random([count, length, width]));
        let (queries, keys, values) = (queries?, keys?.f_transpose(1, 2)?, values?);
        let weights = self.random([count, length, length])?;
        let mixed = self.random([count, length, width])?;
        let whole = seconds_of(self.device, || {
            let _ = queries.f_bmm_out(&weights, &keys)?;
            weights.f_bmm_out(&mixed, &values).map(drop)
        })?;
        Ok(whole / 2.0)
    }

    /// Seconds of `X W^T` for `rows` positions.
    fn product(&self, rows: i64, [out, input]: [i64; 2]) -> Result<f64, TorchError> {
        let inputs = self.random([rows, input])?;
        self.time(inputs, self.random([out, input])?.f_tr()?)
    }

    /// Seconds of its gradients: `G W`, for the input, and `G^T X`, for the matrix.
    fn gradients(&self, rows: i64, [out, input]: [i64; 2]) -> Result<f64, TorchError> {
        let of_input = self.time(self.random([rows, out])?, self.random([out, input])?)?;
        let gradient = self.random([rows, out])?.f_tr()?;
        Ok(of_input + self.time(gradient, self.random([rows, input])?)?)
    }

    fn random<const N: usize>(&self, shape: [i64; N]) -> Result<Tensor, TchError> {
        Tensor::f_rand(shape, (self.kind, self.device))
    }

    /// Seconds of a matmul, into memory that is already allocated.
    fn time(&self, left: Tensor, right: Tensor) -> Result<f64, TorchError> {
        let _no_grad = tch::no_grad_guard();
        let shape = [left.size()[0], right.size()[1]];
        let out = Tensor::f_zeros(shape, (self.kind, self.device))?;
        seconds_of(self.device, || left.f_mm_out(&out, &right).map(drop))
    }
}

/// Returns the median seconds of some work, after a warm-up round.
pub(super) fn seconds_of(
    device: Device,
    work: impl Fn() -> Result<(), TchError>,
) -> Result<f64, TorchError> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..=ROUNDS {
        let began = Instant::now();
        work()?;
        synchronize(device)?;
        times.push(began.elapsed().as_secs_f64());
    }
    Ok(super::median(times.split_off(1)))
}
