//! Provides the parameters of a model by name, from a folder or a seed, and lists them.

use tch::{Device, Kind, Tensor};

use crate::{ModelError, Weights};

/// Initial value of a new parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Initial {
    /// Normal distribution with this standard deviation.
    Normal(f64),
    /// All ones (norms).
    Ones,
    /// All zeros (biases).
    Zeros,
}

/// Hands out parameters on request and records their names.
pub(crate) struct Parameters<'a> {
    source: Source<'a>,
    device: Device,
    kind: Kind,
    list: Vec<(String, Tensor)>,
}

/// Returns the weight of this name on a device.
type Get<'a> = &'a dyn Fn(&str, Device) -> Result<Tensor, ModelError>;

enum Source<'a> {
    Folder(&'a Weights),
    SharedWeights(Get<'a>),
    Seed(u64),
    /// Only names and shapes are needed.
    Shapes,
}

impl<'a> Parameters<'a> {
    pub(crate) fn of_folder(weights: &'a Weights, kind: Kind) -> Self {
        Self::new(Source::Folder(weights), kind)
    }

    /// Parameters that other models share.
    pub(crate) fn of_frozen(get: Get<'a>) -> Self {
        Self::new(Source::SharedWeights(get), Kind::Float)
    }

    /// New parameters in fp32, drawn from (seed, name). They do not depend on what else the model has.
    pub(crate) fn of_seed(seed: u64) -> Self {
        Self::new(Source::Seed(seed), Kind::Float)
    }

    /// Parameters without memory, only for their names and shapes.
    pub(crate) fn of_shapes() -> Self {
        Self::new(Source::Shapes, Kind::Float)
    }

    fn new(source: Source<'a>, kind: Kind) -> Self {
        Self {
            source,
            device: Device::Cpu,
            kind,
            list: Vec::new(),
        }
    }

    /// Sets the device of all parameters requested from now on. Placeholders for names and shapes stay on the CPU.
    pub(crate) fn place_on(&mut self, device: Device) {
        if !matches!(self.source, Source::Shapes) {
            self.device = device;
        }
    }

    /// Returns the parameter `name`. Its shape was checked when the folder was opened.
    pub(crate) fn get(
        &mut self,
        name: String,
        shape: &[i64],
        initial: Initial,
    ) -> Result<Tensor, ModelError> {
        let tensor = match &self.source {
            Source::Folder(weights) => weights.tensor(&name, self.device, self.kind)?,
            Source::SharedWeights(get) => get(&name, self.device)?,
            Source::Seed(seed) => match initial {
                Initial::Ones => Tensor::f_ones(shape, (self.kind, self.device))?,
                Initial::Zeros => Tensor::f_zeros(shape, (self.kind, self.device))?,
                Initial::Normal(deviation) => {
                    let mut rng = ddk_order::stream(*seed, &name, &[]);
                    let count: i64 = shape.iter().product();
                    let values: Vec<f32> = (0..count)
                        .map(|_| (deviation * ddk_order::standard_normal(&mut rng)) as f32)
                        .collect();
                    Tensor::f_from_slice(&values)?
                        .f_reshape(shape)?
                        .f_to_device(self.device)?
                }
            },
            Source::Shapes => {
                Tensor::f_zeros([1], (self.kind, self.device))?.f_expand(shape, false)?
            }
        };
        self.list.push((name, tensor.shallow_clone()));
        Ok(tensor)
    }

    /// All parameters handed out, sorted by name.
    pub(crate) fn into_list(mut self) -> Vec<(String, Tensor)> {
        self.list.sort_by(|a, b| a.0.cmp(&b.0));
        self.list
    }
}
