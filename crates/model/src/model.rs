//! The model interface that the rest of the program uses.

use std::{collections::BTreeMap, path::Path};

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    Cache, ModelConfig, ModelError, Parts, SharedWeights, Weights,
    decoder::{Decoder, Placement},
    padding::Padded,
    parameters::{Parameters, Source},
    parts::Cast,
    safetensors::TensorFile,
};

/// A decoder-only transformer, on one device or with its layers spread over several.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    pub(crate) decoder: Decoder,
    parameters: Vec<(String, Tensor)>,
    /// The LM head, cast for matmuls.
    head_cast: Cast,
    placement: Placement,
}

impl Model {
    /// Loads a Hugging Face folder, one tensor at a time, directly to its device and dtype.
    ///
    /// # Errors
    /// If the folder cannot be read, if its tensors do not match its `config.json`, or if libtorch fails.
    pub fn load(folder: &Path, placement: &Placement) -> Result<Self, ModelError> {
        SharedWeights::of(folder).model(placement)
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
        let mut shapes = Parameters::new(Source::Shapes);
        let nowhere = Placement::on(Device::Cpu, Kind::Float);
        Decoder::new(config.design(), &mut shapes, &nowhere)?;
        let list = shapes.into_list().into_iter();
        Ok(list.map(|(name, tensor)| (name, tensor.size())).collect())
    }

    /// Creates a model in fp32 with weights drawn from the seed.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn random(config: ModelConfig, seed: u64, device: Device) -> Result<Self, ModelError> {
        let placement = Placement::on(device, Kind::Float);
        Self::build(config, Parameters::new(Source::Seed(seed)), &placement)
    }

    pub(crate) fn build(
        config: ModelConfig,
        mut parameters: Parameters<'_>,
        placement: &Placement,
    ) -> Result<Self, ModelError> {
        let decoder = Decoder::new(config.design(), &mut parameters, placement)?;
        Ok(Self {
            config,
            decoder,
            parameters: parameters.into_list(),
            head_cast: Cast::default(),
            placement: placement.clone(),
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
        Ok(self.hidden_and_layers(tokens, parts, &[])?.0)
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
        let mut taken = self.take(layers)?;
        let padded = self.decoder.pad(tokens, parts)?;
        let rows = self.decoder.look_up(&padded.tokens)?;
        let seen = |number, output: &Tensor| taken.see(number, output);
        let hidden = self.decoder.hidden(&rows, padded.parts(), None, seen)?;
        Ok((padded.cut(&hidden)?, taken.into_outputs(&padded)?))
    }

    /// Prepares to collect the outputs of these layers.
    pub(crate) fn take<'a>(&self, layers: &'a [usize]) -> Result<Taken<'a>, ModelError> {
        let count = self.decoder.layers();
        let outputs = BTreeMap::new();
        match layers.iter().find(|number| !(1..=count).contains(*number)) {
            Some(&number) => Err(ModelError::NoLayer { number, count }),
            None => Ok(Taken { layers, outputs }),
        }
    }

    /// Creates an empty cache for [`Self::hidden_after`].
    pub fn cache(&self) -> Cache {
        self.decoder.cache()
    }

    /// Computes the hidden states of tokens `[batch, time]` that follow the cached ones. Adds these tokens to the
    /// cache.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn hidden_after(&self, cache: &mut Cache, tokens: &Tensor) -> Result<Tensor, ModelError> {
        let rows = self.decoder.look_up(tokens)?;
        Ok(self.decoder.hidden(&rows, None, Some(cache), |_, _| {})?)
    }

    /// The embedding, `[vocab_size, hidden_size]`.
    pub fn embedding(&self) -> &Tensor {
        &self.decoder.embedding
    }

    /// The LM head, `[vocab_size, hidden_size]`. Logits are the hidden states times its transpose. If it is tied, it
    /// is the embedding, so that their gradients add up.
    pub fn head(&self) -> &Tensor {
        &self.decoder.head
    }

    /// Returns the LM head in the dtype of the matmuls, without a graph.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn head_for_products(&self) -> Result<Tensor, ModelError> {
        let head = &self.decoder.head;
        Ok(self.head_cast.of(head, self.placement.compute)?.detach())
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
        let copy = |(_, parameter): &(String, Tensor)| Ok(parameter.f_detach_copy()?);
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

    /// Where the weights are.
    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The device that holds the final hidden states.
    pub fn device(&self) -> Device {
        self.placement.last()
    }
}

/// Collects the outputs of chosen layers during a forward pass.
pub(crate) struct Taken<'a> {
    layers: &'a [usize],
    /// Outputs by the number of the layer.
    outputs: BTreeMap<usize, Tensor>,
}

impl Taken<'_> {
    pub(crate) fn see(&mut self, number: usize, output: &Tensor) {
        if self.layers.contains(&number) {
            self.outputs.insert(number, output.shallow_clone());
        }
    }

    /// Returns the outputs in the order in which the layers were chosen.
    pub(crate) fn into_outputs(self, padded: &Padded) -> Result<Vec<Tensor>, TchError> {
        let cut = |number| padded.cut(&self.outputs[number]);
        self.layers.iter().map(cut).collect()
    }
}
