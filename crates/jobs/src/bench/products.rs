//! Times the matmuls of a step alone. A step cannot be faster than its matmuls.

use std::time::Instant;

use ddk_model::ModelConfig;
use ddk_torch::{TorchError, synchronize};
use tch::{Device, Kind, TchError, Tensor};

/// How often each matmul is timed.
const ROUNDS: usize = 5;

/// Which factor of a matmul is transposed in memory.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// `X W^T`.
    Forward,
    /// `G W`.
    OfInput,
    /// `G^T X`.
    OfMatrix,
}

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
        let of_matrix =
            |[out, input]: [i64; 2]| self.time([self.positions, input, out], Layout::Forward);
        self.in_layers(of_matrix, 1.0)
    }

    /// Seconds of the backward pass: for each matmul of the forward pass, one for the gradient of its input and one
    /// for the gradient of its matrix.
    pub(super) fn backward(&self) -> Result<f64, TorchError> {
        let of_matrix = |[out, input]: [i64; 2]| {
            let of_input = self.time([self.positions, out, input], Layout::OfInput)?;
            Ok(of_input + self.time([out, self.positions, input], Layout::OfMatrix)?)
        };
        self.in_layers(of_matrix, 2.0)
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
        let width = self.model.hidden_size();
        let shape = [self.chunk, width, self.columns];
        Ok(self.chunks() * self.time(shape, Layout::Forward)?)
    }

    /// Seconds of their gradients.
    pub(super) fn logits_backward(&self) -> Result<f64, TorchError> {
        let width = self.model.hidden_size();
        let of_hidden = self.time([self.chunk, self.columns, width], Layout::OfInput)?;
        let of_matrix = self.time([self.columns, self.chunk, width], Layout::OfMatrix)?;
        Ok(self.chunks() * (of_hidden + of_matrix))
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
        let new = |shape: [i64; 3]| Tensor::f_rand(shape, (self.kind, self.device));
        let [queries, keys, values] = [(); 3].map(|()| new([count, length, width]));
        let (queries, keys, values) = (queries?, keys?.f_transpose(1, 2)?, values?);
        let (weights, mixed) = (new([count, length, length])?, new([count, length, width])?);
        let whole = seconds_of(self.device, || {
            let _ = queries.f_bmm_out(&weights, &keys)?;
            weights.f_bmm_out(&mixed, &values).map(drop)
        })?;
        Ok(whole / 2.0)
    }

    /// Seconds of `[rows, inner] [inner, columns]`, into memory that is already allocated.
    fn time(&self, [rows, inner, columns]: [i64; 3], layout: Layout) -> Result<f64, TorchError> {
        let _no_grad = tch::no_grad_guard();
        let options = (self.kind, self.device);
        let plain = |rows, columns| Tensor::f_rand([rows, columns], options);
        let transposed = |rows, columns| Tensor::f_rand([columns, rows], options)?.f_tr();
        let (left, right) = match layout {
            Layout::Forward => (plain(rows, inner)?, transposed(inner, columns)?),
            Layout::OfInput => (plain(rows, inner)?, plain(inner, columns)?),
            Layout::OfMatrix => (transposed(rows, inner)?, plain(inner, columns)?),
        };
        let out = Tensor::f_zeros([rows, columns], options)?;
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
