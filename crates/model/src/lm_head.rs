//! The final norm and LM head of a frozen model. A student worker needs only these to continue from hidden states.

use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::{
    ModelConfig, ModelError, Weights,
    parameters::{Parameters, Source},
    parts::Norm,
};

/// The frozen final norm and LM head of the model in a folder.
#[derive(Debug)]
pub struct LmHead {
    norm: Norm,
    head: Tensor,
}

impl LmHead {
    /// Loads the final norm and the LM head. Reads no other tensor of the folder.
    ///
    /// # Errors
    /// If the folder cannot be read or lacks a tensor, or if libtorch fails.
    pub fn load(folder: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let config = ModelConfig::read(folder)?;
        let (design, weights) = (config.design(), Weights::open(folder)?);
        let get = |name: &str, device| weights.tensor(name, device, kind);
        let mut parameters = Parameters::new(Source::Loaded(&get));
        parameters.place_on(device);
        let (name, width) = (design.names.final_norm, design.hidden_size);
        Ok(Self {
            norm: Norm::new(&mut parameters, name, width, design.norm)?,
            head: weights.tensor(&design.head_name(), device, kind)?,
        })
    }

    /// Applies the final norm to a layer's output `[.., hidden_size]`. Gradients flow through.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn normed(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.norm.forward(&x.f_to_kind(self.head.kind())?)?)
    }

    /// The weight of the LM head, `[vocab_size, hidden_size]`.
    pub fn head(&self) -> &Tensor {
        &self.head
    }
}
