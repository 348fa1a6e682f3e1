//! Rotary position embedding (Su et al., "RoFormer"), in the convention of Hugging Face checkpoints: the first half of a
//! head is paired with the second half.

use std::cell::RefCell;

use tch::{Device, Kind, TchError, Tensor};

#[derive(Debug)]
pub(crate) struct Rotary {
    theta: f64,
    head_dim: i64,
    device: Device,
    kind: Kind,
    /// Cosines and sines `[T, E]` of the longest sequence seen. A model stays on the thread that built it.
    tables: RefCell<Option<(Tensor, Tensor)>>,
}

impl Rotary {
    pub(crate) fn new(theta: f64, head_dim: i64, device: Device, kind: Kind) -> Self {
        Self {
            theta,
            head_dim,
            device,
            kind,
            tables: RefCell::new(None),
        }
    }

    /// Cosines and sines of positions `0..time`, each `[T, E]`.
    pub(crate) fn tables(&self, time: i64) -> Result<(Tensor, Tensor), TchError> {
        let mut tables = self.tables.borrow_mut();
        let long_enough = tables
            .as_ref()
            .is_some_and(|(cos, _)| cos.size()[0] >= time);
        if !long_enough {
            *tables = Some(self.compute(time)?);
        }
        match &*tables {
            Some((cos, sin)) => Ok((cos.f_narrow(0, 0, time)?, sin.f_narrow(0, 0, time)?)),
            None => self.compute(time),
        }
    }

    /// In fp32, as the reference does, then in the model's dtype.
    fn compute(&self, time: i64) -> Result<(Tensor, Tensor), TchError> {
        let _no_grad = tch::no_grad_guard();
        let half = self.head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|index| {
                let exponent = 2.0 * index as f32 / self.head_dim as f32;
                1.0 / (self.theta as f32).powf(exponent)
            })
            .collect();
        let frequencies = Tensor::f_from_slice(&frequencies)?;
        let positions = Tensor::f_arange(time, (Kind::Float, Device::Cpu))?;
        let angles = positions.f_outer(&frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
        let place = |table: Tensor| table.f_to_kind(self.kind)?.f_to_device(self.device);
        Ok((place(angles.f_cos()?)?, place(angles.f_sin()?)?))
    }
}

/// Rotates `x` `[B, H, T, E]` by the tables `[T, E]`.
pub(crate) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TchError> {
    let halves = x.f_chunk(2, -1)?;
    let turned = Tensor::f_cat(&[&halves[1].f_neg()?, &halves[0]], -1)?;
    x.f_mul(cos)?.f_add(&turned.f_mul(sin)?)
}
