//! The model interface that the rest of the program uses.

use std::path::Path;

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Cache, ModelConfig, ModelError, Parts, Weights,
    decoder::{Decoder, Spread},
    padding::Padded,
    parameters::Parameters,
    parts::Cast,
    safetensors::TensorFile,
};

/// A decoder-only transformer, on one device or with its layers spread over several.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    decoder: Decoder,
    parameters: Vec<(String, Tensor)>,
    /// The LM head, cast for matmuls.
    head_cast: Cast,
    spread: Spread,
}

/// Devices and dtypes of a model.
#[derive(Debug, Clone)]
pub struct Placement {
    /// At least one device. The layers are split evenly over the devices, in order.
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
}

/// The LM head.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[vocab_size, hidden_size]`.
    pub weight: &'a Tensor,
    /// Whether the LM head is the embedding, so that their gradients add up.
    pub tied: bool,
}

impl Model {
    /// Loads a Hugging Face folder, one tensor at a time, directly to its device and dtype.
    ///
    /// # Errors
    /// If the folder cannot be read, if its tensors do not match its `config.json`, or if libtorch fails.
    pub fn load(folder: &Path, placement: &Placement) -> Result<Self, ModelError> {
        let config = ModelConfig::read(folder)?;
        let weights = Weights::open(folder)?;
        Self::check(&config, &weights)?;
        Self::build(
            config,
            Parameters::of_folder(&weights, placement.weights),
            placement,
        )
    }

    /// Compares a folder's tensors with what its configuration needs. Reads only their headers.
    ///
    /// # Errors
    /// If a tensor is missing, unexpected, or of the wrong shape. The error lists all of them.
    pub fn check(config: &ModelConfig, weights: &Weights) -> Result<(), ModelError> {
        weights.check(&Self::needed(config)?, |name| {
            name.ends_with("rotary_emb.inv_freq")
                || name.ends_with("attn.bias")
                || name.ends_with("attn.masked_bias")
                || (config.tied() && name == "lm_head.weight")
        })
    }

    /// Names and shapes of all parameters, sorted by name.
    pub(crate) fn needed(config: &ModelConfig) -> Result<Vec<(String, Vec<i64>)>, ModelError> {
        let mut shapes = Parameters::of_shapes();
        let nowhere = Placement::on(Device::Cpu, Kind::Float);
        Decoder::new(config.design(), &mut shapes, &spread(&nowhere))?;
        let list = shapes.into_list().into_iter();
        Ok(list.map(|(name, tensor)| (name, tensor.size())).collect())
    }

    /// Creates a model in fp32 with weights drawn from the seed.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn random(config: ModelConfig, seed: u64, device: Device) -> Result<Self, ModelError> {
        let placement = Placement::on(device, Kind::Float);
        Self::build(config, Parameters::of_seed(seed), &placement)
    }

    pub(crate) fn build(
        config: ModelConfig,
        mut parameters: Parameters<'_>,
        placement: &Placement,
    ) -> Result<Self, ModelError> {
        let spread = spread(placement);
        let decoder = Decoder::new(config.design(), &mut parameters, &spread)?;
        Ok(Self {
            config,
            decoder,
            parameters: parameters.into_list(),
            head_cast: Cast::default(),
            spread,
        })
    }

    /// Computes hidden states `[batch, time, hidden_size]`, after the final norm, from token ids `[batch, time]` (i64).
    ///
    /// With `parts`, each sequence holds several documents that do not attend to each other, as if each were a sequence
    /// of its own.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn hidden(&self, tokens: &Tensor, parts: Option<&Parts>) -> Result<Tensor, ModelError> {
        let padded = self.decoder.pad(tokens, parts)?;
        let hidden = self
            .decoder
            .hidden(&padded.tokens, padded.parts(), None, |_, _| {})?;
        Ok(padded.cut(&hidden)?)
    }

    /// Works like [`Self::hidden`] and also returns the outputs of `layers` (counted from 1), in that order and
    /// before any final norm.
    ///
    /// # Errors
    /// If a layer does not exist, or if libtorch fails.
    pub fn hidden_and_layers(
        &self,
        tokens: &Tensor,
        parts: Option<&Parts>,
        layers: &[usize],
    ) -> Result<(Tensor, Vec<Tensor>), ModelError> {
        self.check_layers(layers)?;
        let mut taken = Taken::new(layers);
        let padded = self.decoder.pad(tokens, parts)?;
        let seen = |number, output: &Tensor| taken.see(number, output);
        let hidden = self
            .decoder
            .hidden(&padded.tokens, padded.parts(), None, seen)?;
        Ok((padded.cut(&hidden)?, taken.into_outputs(&padded)?))
    }

    /// Checks that the model has these layers.
    pub(crate) fn check_layers(&self, layers: &[usize]) -> Result<(), ModelError> {
        let count = self.decoder.layers();
        match layers.iter().find(|number| !(1..=count).contains(*number)) {
            Some(&number) => Err(ModelError::NoLayer { number, count }),
            None => Ok(()),
        }
    }

    /// Creates an empty cache for [`Self::hidden_after`].
    pub fn cache(&self) -> Cache {
        Cache::new(self.decoder.layers())
    }

    /// Computes the hidden states of tokens `[batch, time]` that follow the cached ones. Adds these tokens to the
    /// cache.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn hidden_after(&self, cache: &mut Cache, tokens: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.decoder.hidden(tokens, None, Some(cache), |_, _| {})?)
    }

    /// The embedding, `[vocab_size, hidden_size]`.
    pub fn embedding(&self) -> &Tensor {
        self.decoder.embedding()
    }

    /// Returns the LM head. Logits are the hidden states times its transpose.
    pub fn head(&self) -> Head<'_> {
        Head {
            weight: &self.decoder.head,
            tied: self.config.tied(),
        }
    }

    /// Returns the LM head in the dtype of the matmuls, without a graph.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn head_for_products(&self) -> Result<Tensor, ModelError> {
        let head = &self.decoder.head;
        Ok(self.head_cast.of(head, self.spread.compute)?.detach())
    }

    /// Replaces all weights with those of a file that uses the same names, such as a checkpoint's.
    ///
    /// # Errors
    /// If a tensor is missing from the file or has another shape, or if libtorch cannot copy it.
    pub fn replace_weights(&mut self, file: &TensorFile) -> Result<(), ModelError> {
        let _no_grad = tch::no_grad_guard();
        for (name, parameter) in &mut self.parameters {
            parameter.f_copy_(&file.tensor(name, &parameter.size())?)?;
        }
        self.weights_changed();
        Ok(())
    }

    /// Copies all parameters, in order, without a graph.
    ///
    /// # Errors
    /// If libtorch cannot allocate or copy a tensor.
    pub fn copy_parameters(&self) -> Result<Vec<Tensor>, ModelError> {
        let _no_grad = tch::no_grad_guard();
        let copy = |(_, parameter): &(String, Tensor)| {
            let mut copy = parameter.f_empty_like()?;
            copy.f_copy_(parameter)?;
            Ok(copy)
        };
        self.parameters.iter().map(copy).collect()
    }

    /// Replaces all weights with copies from a model of the same configuration.
    ///
    /// # Errors
    /// If libtorch cannot copy a tensor, for example because its shape does not match.
    pub fn set_parameters(&mut self, copies: &[Tensor]) -> Result<(), ModelError> {
        let _no_grad = tch::no_grad_guard();
        for ((_, parameter), copy) in self.parameters.iter_mut().zip(copies) {
            parameter.f_copy_(copy)?;
        }
        self.weights_changed();
        Ok(())
    }

    /// Discards what was derived from the weights. Call it after changing weights from outside. If the matmuls use
    /// another dtype than the weights, the model casts each weight once and keeps the copy until this call.
    pub fn weights_changed(&self) {
        self.head_cast.forget();
        self.decoder.weights_changed();
    }

    /// All parameters, sorted by name. A tied LM head appears once, as the embedding.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Sets whether the parameters accumulate gradients.
    pub fn set_trainable(&mut self, trainable: bool) {
        for (_, parameter) in &self.parameters {
            let _ = parameter.set_requires_grad(trainable);
        }
        self.weights_changed();
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device that holds the final hidden states.
    pub fn device(&self) -> Device {
        self.spread.last()
    }

    pub(crate) fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}

/// Collects the outputs of chosen layers during a forward pass.
pub(crate) struct Taken<'a> {
    layers: &'a [usize],
    /// Each output with its index in `layers`.
    outputs: Vec<(usize, Tensor)>,
}

impl<'a> Taken<'a> {
    pub(crate) fn new(layers: &'a [usize]) -> Self {
        Self {
            layers,
            outputs: Vec::with_capacity(layers.len()),
        }
    }

    pub(crate) fn see(&mut self, number: usize, output: &Tensor) {
        for (place, wanted) in self.layers.iter().enumerate() {
            if *wanted == number {
                self.outputs.push((place, output.shallow_clone()));
            }
        }
    }

    /// Returns the outputs in the order in which the layers were chosen.
    pub(crate) fn into_outputs(mut self, padded: &Padded) -> Result<Vec<Tensor>, TchError> {
        self.outputs.sort_by_key(|(place, _)| *place);
        let outputs = self.outputs.iter();
        outputs.map(|(_, output)| padded.cut(output)).collect()
    }
}

fn spread(placement: &Placement) -> Spread {
    Spread {
        devices: placement.devices.clone(),
        compute: placement.compute,
    }
}
