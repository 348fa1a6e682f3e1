//! A model as the rest of the program sees it.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::{ModelConfig, ModelError, Weights, llama::Llama, parameters::Parameters};

/// A decoder-only transformer on one device.
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    decoder: Llama,
    parameters: Vec<(String, Tensor)>,
    device: Device,
}

/// The output matrix.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// `[vocab_size, hidden_size]`.
    pub weight: &'a Tensor,
    /// Whether it is the embedding, so that their gradients add up.
    pub tied: bool,
}

impl Model {
    /// Loads a Hugging Face folder: tensor by tensor to `device`, in dtype `kind`.
    pub fn load(folder: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let config = ModelConfig::read(folder)?;
        let weights = Weights::open(folder)?;
        let needed: Vec<(String, Vec<i64>)> = {
            let mut shapes = Parameters::of_shapes();
            Llama::new(&config, &mut shapes, Device::Cpu, Kind::Float)?;
            shapes
                .into_list()
                .into_iter()
                .map(|(name, tensor)| (name, tensor.size()))
                .collect()
        };
        let tied = config.architecture.tie_word_embeddings;
        weights.check(&needed, |name| {
            name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
        })?;
        Self::build(
            config,
            Parameters::of_folder(&weights, device, kind),
            device,
            kind,
        )
    }

    /// The output matrix of a folder's model alone, `[vocab_size, hidden_size]`: what a student needs of its teacher.
    pub fn load_head(folder: &Path, device: Device, kind: Kind) -> Result<Tensor, ModelError> {
        let tied = ModelConfig::read(folder)?.architecture.tie_word_embeddings;
        let name = if tied {
            "model.embed_tokens.weight"
        } else {
            "lm_head.weight"
        };
        Weights::open(folder)?.tensor(name, device, kind)
    }

    /// A new model in fp32 with weights drawn from the seed.
    pub fn random(config: ModelConfig, seed: u64, device: Device) -> Result<Self, ModelError> {
        Self::build(
            config,
            Parameters::of_seed(seed, device),
            device,
            Kind::Float,
        )
    }

    fn build(
        config: ModelConfig,
        mut parameters: Parameters<'_>,
        device: Device,
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let decoder = Llama::new(&config, &mut parameters, device, kind)?;
        Ok(Self {
            config,
            decoder,
            parameters: parameters.into_list(),
            device,
        })
    }

    /// Token ids `[batch, time]` (i64) to hidden states `[batch, time, hidden_size]`, after the final norm.
    pub fn hidden(&self, tokens: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.decoder.hidden(tokens)?)
    }

    /// The output matrix: logits are hidden states times its transpose.
    pub fn head(&self) -> Head<'_> {
        Head {
            weight: &self.decoder.lm_head,
            tied: self.config.architecture.tie_word_embeddings,
        }
    }

    /// All parameters, sorted by name; a tied output matrix appears once, as the embedding.
    pub fn parameters(&self) -> &[(String, Tensor)] {
        &self.parameters
    }

    /// Whether gradients are gathered for the parameters.
    pub fn set_trainable(&mut self, trainable: bool) {
        for (_, parameter) in &self.parameters {
            let _ = parameter.set_requires_grad(trainable);
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        self.device
    }
}
