//! Computes logits from hidden states, and backpropagates their gradients.

use tch::{Device, Kind, TchError, Tensor};

/// The dtype of softmaxes and differences for these inputs: fp32, or f64 for f64 inputs.
pub(crate) fn softmax_kind(hidden: &Tensor) -> Kind {
    match hidden.kind() {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}

/// Hidden states and LM head of a model.
#[derive(Debug, Clone, Copy)]
pub struct HeadInput<'a> {
    /// `[positions, d_model]`.
    pub hidden: &'a Tensor,
    /// `[columns, d_model]`; at least as many columns as the vocabulary.
    pub weight: &'a Tensor,
    /// `[columns]`.
    pub bias: Option<&'a Tensor>,
    /// Scale factor for the logits (Cohere); 1 for most models.
    pub scale: f64,
    /// Logits z become `cap * tanh(z / cap)` (Gemma 2), after the scale.
    pub soft_cap: Option<f64>,
}

/// Memory for the logits of a chunk, for student and teacher. Reuse it across calls: otherwise the system takes
/// back buffers of this size and faults them in again for every chunk.
#[derive(Debug, Default)]
pub struct LogitBuffers {
    pub(crate) student: Buffer,
    pub(crate) teacher: Buffer,
}

/// Memory for a matrix. Grows to the largest size requested.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<Tensor>);

impl Buffer {
    /// Returns an uninitialized matrix in this memory. It overwrites the previous one.
    fn matrix(
        &mut self,
        [rows, columns]: [i64; 2],
        kind: Kind,
        device: Device,
    ) -> Result<Tensor, TchError> {
        let numbers = rows * columns;
        let fits = |tensor: &Tensor| {
            (tensor.kind(), tensor.device()) == (kind, device) && tensor.numel() >= numbers as usize
        };
        let kept = match self.0.take().filter(fits) {
            Some(kept) => kept,
            None => Tensor::f_empty([numbers], (kind, device))?,
        };
        let matrix = kept.f_narrow(0, 0, numbers)?.f_view([rows, columns])?;
        self.0 = Some(kept);
        Ok(matrix)
    }
}

impl<'a> HeadInput<'a> {
    /// A head with no bias, scale, or cap.
    pub fn new(hidden: &'a Tensor, weight: &'a Tensor) -> Self {
        Self {
            hidden,
            weight,
            bias: None,
            scale: 1.0,
            soft_cap: None,
        }
    }

    /// Computes logits `[count, columns]` of the positions `start..start + count`, in the dtype of the softmaxes.
    /// Uses the buffer if the matmul has that dtype too.
    pub(crate) fn logits(
        &self,
        start: i64,
        count: i64,
        columns: i64,
        buffer: &mut Buffer,
    ) -> Result<Tensor, TchError> {
        let hidden = self.hidden.f_narrow(0, start, count)?;
        let weight = self.weight.f_narrow(0, 0, columns)?.f_tr()?;
        let kind = softmax_kind(self.hidden);
        let mut logits = if hidden.kind() == kind {
            let out = buffer.matrix([count, columns], kind, hidden.device())?;
            hidden.f_mm_out(&out, &weight)?
        } else {
            hidden.f_mm(&weight)?.f_to_kind(kind)?
        };
        if let Some(bias) = self.bias {
            logits = logits.f_add_(&bias.f_narrow(0, 0, columns)?)?;
        }
        if self.scale != 1.0 {
            logits = logits.f_mul_scalar_(self.scale)?;
        }
        if let Some(cap) = self.soft_cap {
            logits = logits
                .f_mul_scalar_(1.0 / cap)?
                .f_tanh_()?
                .f_mul_scalar_(cap)?;
        }
        Ok(logits)
    }

    /// Computes the gradient before scale and cap from that of the finished `logits`.
    pub(crate) fn through(
        &self,
        mut gradient: Tensor,
        logits: Option<&Tensor>,
    ) -> Result<Tensor, TchError> {
        if let (Some(cap), Some(logits)) = (self.soft_cap, logits) {
            let slope = logits
                .f_mul_scalar(1.0 / cap)?
                .f_square_()?
                .f_neg_()?
                .f_add_scalar_(1.0)?;
            gradient = gradient.f_mul_(&slope)?;
        }
        if self.scale != 1.0 {
            gradient = gradient.f_mul_scalar_(self.scale)?;
        }
        Ok(gradient)
    }
}
