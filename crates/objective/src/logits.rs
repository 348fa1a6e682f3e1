//! From hidden states to logits, and gradients back.

use tch::{Device, Kind, TchError, Tensor};

/// Hidden states and the output matrix of a model.
#[derive(Debug, Clone, Copy)]
pub struct HeadInput<'a> {
    /// `[positions, d_model]`.
    pub hidden: &'a Tensor,
    /// `[columns, d_model]`; at least as many columns as the vocabulary.
    pub weight: &'a Tensor,
    /// `[columns]`.
    pub bias: Option<&'a Tensor>,
    /// Logits are multiplied by this (Cohere); 1 for most models.
    pub scale: f64,
    /// Logits z become `cap * tanh(z / cap)` (Gemma 2), after the scale.
    pub soft_cap: Option<f64>,
}

/// Memory for the logits of a chunk, student's and teacher's. Kept from call to call it is got from the
/// system once: buffers of such a size would be given back and faulted in again for every chunk.
#[derive(Debug, Default)]
pub struct LogitBuffers {
    pub(crate) student: Buffer,
    pub(crate) teacher: Buffer,
}

/// Memory for a matrix; grows to the largest that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Option<Tensor>);

impl Buffer {
    /// A matrix without values in this memory. What it was before is overwritten.
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
    /// A head that is its matrix alone.
    pub fn new(hidden: &'a Tensor, weight: &'a Tensor) -> Self {
        Self {
            hidden,
            weight,
            bias: None,
            scale: 1.0,
            soft_cap: None,
        }
    }

    /// The dtype of softmaxes: fp32, or f64 for f64 inputs.
    pub(crate) fn softmax_kind(&self) -> Kind {
        match self.hidden.kind() {
            Kind::Double => Kind::Double,
            _ => Kind::Float,
        }
    }

    /// Logits `[count, columns]` of the positions `start..start + count`, in the dtype of softmaxes; in the
    /// buffer where they are formed in that dtype.
    pub(crate) fn logits(
        &self,
        start: i64,
        count: i64,
        columns: i64,
        buffer: &mut Buffer,
    ) -> Result<Tensor, TchError> {
        let hidden = self.hidden.f_narrow(0, start, count)?;
        let weight = self.weight.f_narrow(0, 0, columns)?.f_tr()?;
        let kind = self.softmax_kind();
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

    /// The gradient before scale and cap, from that of the finished `logits`.
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
