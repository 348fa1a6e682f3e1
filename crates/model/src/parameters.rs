//! Provides the parameters of a model by name, from a folder or a seed, and lists them.

use tch::{Device, Kind, TchError, Tensor};

use crate::ModelError;

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
    list: Vec<(String, Tensor)>,
}

/// Where parameters come from.
pub(crate) enum Source<'a> {
    /// The function returns the weight of this name on a device.
    Loaded(&'a dyn Fn(&str, Device) -> Result<Tensor, ModelError>),
    /// New parameters in fp32, drawn from (seed, name). They do not depend on what else the model has.
    Seed(u64),
    /// Parameters without memory: only names and shapes are needed.
    Shapes,
}

impl<'a> Parameters<'a> {
    pub(crate) fn new(source: Source<'a>) -> Self {
        Self {
            source,
            device: Device::Cpu,
            list: Vec::new(),
        }
    }

    /// Sets the device of all parameters requested from now on.
    pub(crate) fn place_on(&mut self, device: Device) {
        self.device = device;
    }

    /// Returns the parameter `name`. Its shape was checked when the folder was opened.
    pub(crate) fn get(
        &mut self,
        name: String,
        shape: &[i64],
        initial: Initial,
    ) -> Result<Tensor, ModelError> {
        let options = (Kind::Float, self.device);
        let tensor = match &self.source {
            Source::Loaded(get) => get(&name, self.device)?,
            Source::Seed(seed) => match initial {
                Initial::Ones => Tensor::f_ones(shape, options)?,
                Initial::Zeros => Tensor::f_zeros(shape, options)?,
                Initial::Normal(deviation) => normal(*seed, &name, deviation, shape, self.device)?,
            },
            Source::Shapes => Tensor::f_zeros([1], options)?.f_expand(shape, false)?,
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

/// Draws an fp32 tensor from (seed, name): a normal distribution with mean 0 and this standard deviation.
///
/// # Errors
/// If libtorch fails, for example because memory runs out.
pub fn normal(
    seed: u64,
    name: &str,
    deviation: f64,
    shape: &[i64],
    device: Device,
) -> Result<Tensor, TchError> {
    let mut rng = ddk_order::stream(seed, name, &[]);
    let count: i64 = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|_| (deviation * ddk_order::standard_normal(&mut rng)) as f32)
        .collect();
    let values = Tensor::f_from_slice(&values)?.f_reshape(shape)?;
    values.f_to_device(device)
}
