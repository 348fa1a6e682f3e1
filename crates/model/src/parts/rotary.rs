//! Rotary position embedding (Su et al., "RoFormer"), in the convention of Hugging Face checkpoints: the
//! first half of a head is paired with the second half.

use std::{cell::RefCell, f32::consts::PI};

use tch::{Device, Kind, TchError, Tensor};

use crate::spec::{RotaryScaling, RotarySpec};

/// Cosines and sines of a range of positions, each `[T, E]`.
pub(crate) type Tables = (Tensor, Tensor);

#[derive(Debug)]
pub(crate) struct Rotary {
    /// Radians per position, `[E / 2]`.
    frequencies: Vec<f32>,
    device: Device,
    kind: Kind,
    /// Tables of the longest sequence so far. A `RefCell` suffices, because a model stays on the thread that built
    /// it.
    tables: RefCell<Option<Tables>>,
}

impl Rotary {
    pub(crate) fn new(design: &RotarySpec, head_dim: i64, device: Device, kind: Kind) -> Self {
        Self {
            frequencies: frequencies(design, head_dim),
            device,
            kind,
            tables: RefCell::new(None),
        }
    }

    /// Returns the tables of `time` positions from `start` on.
    pub(crate) fn tables(&self, start: i64, time: i64) -> Result<Tables, TchError> {
        let end = start + time;
        let mut tables = self.tables.borrow_mut();
        let (cos, sin) = match tables.take() {
            Some(tables) if tables.0.size()[0] >= end => tables,
            // Leave room to grow, so that token-by-token generation does not recompute the tables for each token.
            old => self.compute(if old.is_some() { 2 * end } else { end })?,
        };
        let wanted = (cos.f_narrow(0, start, time)?, sin.f_narrow(0, start, time)?);
        *tables = Some((cos, sin));
        Ok(wanted)
    }

    /// Computes in fp32, as the reference does, and then casts to the dtype of the model.
    fn compute(&self, time: i64) -> Result<Tables, TchError> {
        let _no_grad = tch::no_grad_guard();
        let frequencies = Tensor::f_from_slice(&self.frequencies)?;
        let positions = Tensor::f_arange(time, (Kind::Float, Device::Cpu))?;
        let angles = positions.f_outer(&frequencies)?;
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?;
        let place = |table: Tensor| table.f_to_kind(self.kind)?.f_to_device(self.device);
        Ok((place(angles.f_cos()?)?, place(angles.f_sin()?)?))
    }
}

fn frequencies(design: &RotarySpec, head_dim: i64) -> Vec<f32> {
    (0..head_dim / 2)
        .map(|index| {
            let exponent = 2.0 * index as f32 / head_dim as f32;
            let frequency = 1.0 / (design.theta as f32).powf(exponent);
            match design.scaling {
                RotaryScaling::None => frequency,
                RotaryScaling::Linear { factor } => frequency / factor as f32,
                RotaryScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_positions,
                } => {
                    // Number of full turns within the length on which the model was first trained.
                    let turns = original_max_positions as f32 * frequency / (2.0 * PI);
                    let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                    // 0: divided by the factor; 1: kept.
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor as f32 + kept * frequency
                }
            }
        })
        .collect()
}

/// Rotates `x` `[B, H, T, E]` by the tables `[T, E]`.
pub(crate) fn rotate(x: &Tensor, (cos, sin): &Tables) -> Result<Tensor, TchError> {
    let halves = x.f_chunk(2, -1)?;
    let turned = Tensor::f_cat(&[&halves[1].f_neg()?, &halves[0]], -1)?;
    x.f_mul(cos)?.f_add(&turned.f_mul(sin)?)
}
