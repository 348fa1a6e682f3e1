//! Builds a decoder from parts, according to an [`ArchitectureSpec`].

use std::collections::HashMap;

use ddk_torch::{padded, to_device};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    ModelError,
    padding::{Padded, Parts, Place},
    parameters::{Initial, Parameters},
    parts::{Attention, LayerCache, Mlp, Norm, Rotary, Tables, cast},
    spec::{ArchitectureSpec, Positions},
};

#[derive(Debug)]
pub(crate) struct Decoder {
    /// `[V, D]`.
    pub(crate) embedding: Tensor,
    embedding_scale: Option<f64>,
    positions: PositionTable,
    layers: Vec<Layer>,
    norm: Norm,
    /// `[V, D]`; the embedding itself if the two are tied.
    pub(crate) head: Tensor,
    /// Dtype of the hidden states.
    compute: Kind,
}

#[derive(Debug)]
enum PositionTable {
    /// One per device that has layers.
    Rotary(HashMap<Device, Rotary>),
    /// `[positions, D]`.
    Learned(Tensor),
}

#[derive(Debug)]
struct Layer {
    device: Device,
    attention_norm: Norm,
    attention: Attention,
    mlp_norm: Norm,
    mlp: Mlp,
}

/// Position of each token within its part, `[B, T]`.
fn positions(parts: &Parts) -> Result<Tensor, TchError> {
    let rows: Vec<i64> = parts
        .iter()
        .flat_map(|row| row.iter().flat_map(|&length| 0..length))
        .collect();
    Tensor::f_from_slice(&rows)?.f_view([parts.len() as i64, -1])
}

/// Devices and dtypes of a model.
#[derive(Debug, Clone)]
pub struct Placement {
    /// At least one device. The layers are split evenly over the devices, in order. The embedding is on the first
    /// device, the final norm and the LM head on the last.
    pub devices: Vec<Device>,
    /// Dtype of the parameters in memory.
    pub weights: Kind,
    /// Dtype of the hidden states and of the matmuls. Weights of another dtype are cast again each time they
    /// change.
    pub compute: Kind,
}

impl Placement {
    /// Puts everything on one device, in one dtype.
    pub fn on(device: Device, kind: Kind) -> Self {
        Self {
            devices: vec![device],
            weights: kind,
            compute: kind,
        }
    }

    pub(crate) fn last(&self) -> Device {
        self.devices.last().copied().unwrap_or(Device::Cpu)
    }

    fn of_layer(&self, index: i64, layers: i64) -> Device {
        let share = index as usize * self.devices.len() / layers.max(1) as usize;
        self.devices.get(share).copied().unwrap_or(Device::Cpu)
    }
}

impl Decoder {
    pub(crate) fn new(
        design: &ArchitectureSpec,
        parameters: &mut Parameters<'_>,
        placement: &Placement,
    ) -> Result<Self, ModelError> {
        let (names, width) = (design.names, design.hidden_size);
        let initial = Initial::Normal(design.initializer_range);
        let table = [design.vocab_size, width];
        parameters.place_on(placement.of_layer(0, design.layers));
        let embedding = parameters.get(format!("{}.weight", names.embedding), &table, initial)?;
        let positions = match &design.positions {
            Positions::Learned => PositionTable::Learned(parameters.get(
                format!("{}.weight", names.positions),
                &[design.max_positions, width],
                initial,
            )?),
            Positions::Rotary(rotary) => {
                let head_dim = design.attention.head_dim;
                let of = |device| Rotary::new(rotary, head_dim, device, placement.compute);
                let devices = placement.devices.iter();
                PositionTable::Rotary(devices.map(|&device| (device, of(device))).collect())
            }
        };
        let mut layers = Vec::new();
        for index in 0..design.layers {
            let device = placement.of_layer(index, design.layers);
            parameters.place_on(device);
            let name = |part: &str| format!("{}.{index}.{part}", names.layers);
            let mut norm = |part| Norm::new(parameters, &name(part), width, design.norm);
            layers.push(Layer {
                device,
                attention_norm: norm(names.attention_norm)?,
                mlp_norm: norm(names.mlp_norm)?,
                attention: Attention::new(parameters, &name(names.attention), design)?,
                mlp: Mlp::new(parameters, &name(names.mlp), design)?,
            });
        }
        parameters.place_on(placement.last());
        let norm = Norm::new(parameters, names.final_norm, width, design.norm)?;
        let head = if design.tied {
            embedding.f_to_device(placement.last())?
        } else {
            parameters.get(design.head_name(), &table, initial)?
        };
        Ok(Self {
            embedding,
            embedding_scale: design.embedding_scale,
            positions,
            layers,
            norm,
            head,
            compute: placement.compute,
        })
    }

    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// See [`crate::Model::cache`].
    pub(crate) fn cache(&self) -> Cache {
        Cache {
            layers: self.layers.iter().map(|_| LayerCache::default()).collect(),
            positions: 0,
        }
    }

    /// Pads tokens `[B, T]` as the decoder's device requires. Not for use with a cache.
    pub(crate) fn pad(
        &self,
        tokens_bt: &Tensor,
        parts: Option<&Parts>,
    ) -> Result<Padded, TchError> {
        let time = tokens_bt.size()[1];
        let length = padded(time, self.embedding.device());
        let length = match &self.positions {
            // The table has no positions past its end.
            PositionTable::Learned(table) if length > table.size()[0] => time,
            _ => length,
        };
        Padded::new(tokens_bt, parts, length)
    }

    /// See [`crate::Model::weights_changed`].
    pub(crate) fn weights_changed(&self) {
        for layer in &self.layers {
            layer.attention.weights_changed();
            layer.mlp.weights_changed();
        }
    }

    /// Computes hidden states after the final norm `[B, T, D]` from the result of [`Self::look_up`]. With a cache, the
    /// tokens follow the cached ones. Calls `seen` with the number (from 1) and the output of each layer.
    pub(crate) fn hidden(
        &self,
        rows_btd: &Tensor,
        parts: Option<&Parts>,
        mut cache: Option<&mut Cache>,
        mut seen: impl FnMut(usize, &Tensor),
    ) -> Result<Tensor, TchError> {
        let time = rows_btd.size()[1];
        let place = Place {
            start: cache.as_ref().map_or(0, |cache| cache.positions),
            parts,
        };
        let mut x_btd = self.embed(rows_btd, place)?;
        for index in 0..self.layers.len() {
            let cache = cache.as_mut().map(|cache| &mut cache.layers[index]);
            x_btd = self.layer(index, &x_btd, place, cache)?;
            seen(index + 1, &x_btd);
        }
        if let Some(cache) = cache {
            cache.positions += time;
        }
        self.norm(&x_btd)
    }

    /// Looks up the embedding rows of the tokens `[B, T]`: `[B, T, D]`, in the dtype of the embedding.
    pub(crate) fn look_up(&self, tokens_bt: &Tensor) -> Result<Tensor, TchError> {
        let tokens_bt = tokens_bt.f_to_device(self.embedding.device())?;
        Tensor::f_embedding(&self.embedding, &tokens_bt, -1, false, false)
    }

    /// Computes the input of the first layer from the result of [`Self::look_up`].
    pub(crate) fn embed(&self, rows_btd: &Tensor, place: Place<'_>) -> Result<Tensor, TchError> {
        let mut x_btd = cast(rows_btd, self.compute)?;
        if let Some(scale) = self.embedding_scale {
            // Round the scale to the dtype first, as the reference does.
            let scale = Tensor::from(scale).f_to_kind(self.compute)?;
            x_btd = x_btd.f_mul(&scale.f_to_device(x_btd.device())?)?;
        }
        if let PositionTable::Learned(table) = &self.positions {
            let table = match place.parts {
                Some(parts) => {
                    let positions = to_device(positions(parts)?, table.device())?;
                    table.f_index(&[Some(positions)])?
                }
                None => table.f_narrow(0, place.start, rows_btd.size()[1])?,
            };
            x_btd = x_btd.f_add(&cast(&table, self.compute)?)?;
        }
        Ok(x_btd)
    }

    /// Runs one block.
    pub(crate) fn layer(
        &self,
        index: usize,
        x_btd: &Tensor,
        place: Place<'_>,
        cache: Option<&mut LayerCache>,
    ) -> Result<Tensor, TchError> {
        let layer = &self.layers[index];
        let x_btd = x_btd.f_to_device(layer.device)?;
        let rotary = self.rotary(layer.device, place, x_btd.size()[1])?;
        let normed = layer.attention_norm.forward(&x_btd)?;
        let mixed = layer
            .attention
            .forward(&normed, rotary.as_ref(), place.parts, cache)?;
        let [x_btd, normed] = layer.mlp_norm.of_sum(&x_btd, &mixed)?;
        x_btd.f_add(&layer.mlp.forward(&normed)?)
    }

    /// Applies the final norm.
    pub(crate) fn norm(&self, x_btd: &Tensor) -> Result<Tensor, TchError> {
        self.norm.forward(&x_btd.f_to_device(self.head.device())?)
    }

    fn rotary(
        &self,
        device: Device,
        place: Place<'_>,
        time: i64,
    ) -> Result<Option<Tables>, TchError> {
        let PositionTable::Rotary(tables) = &self.positions else {
            return Ok(None);
        };
        let (cos, sin) = tables[&device].tables(place.start, time)?;
        let Some(parts) = place.parts else {
            return Ok(Some((cos, sin)));
        };
        // Each sequence has its own positions, the same for all heads: [B, 1, T, E].
        let positions = to_device(positions(parts)?, device)?;
        let of_rows = |table: &Tensor| table.f_index(&[Some(&positions)])?.f_unsqueeze(1);
        Ok(Some((of_rows(&cos)?, of_rows(&sin)?)))
    }
}

/// Keys and values of all positions that a model has read, so that each new token costs one position.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<LayerCache>,
    positions: i64,
}

impl Cache {
    /// Number of positions read.
    pub fn positions(&self) -> i64 {
        self.positions
    }
}
