//! Shares read-only weights, so that they are in memory only once.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tch::{Device, Kind, Tensor};

use crate::{
    Model, ModelConfig, ModelError, Placement, Weights,
    parameters::{Parameters, Source},
};

/// A folder's weights, shared by everything that only reads them: models on several threads of one device, and
/// users of the LM head alone. Each tensor is loaded at its first use.
///
/// Do not train models built from it, and do not replace their weights: all other users would see the change.
#[derive(Debug)]
pub struct SharedWeights {
    folder: PathBuf,
    loaded: Mutex<HashMap<(String, Device, Kind), Tensor>>,
}

impl SharedWeights {
    /// Prepares to share a folder's weights. Reads nothing yet.
    pub fn of(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            loaded: Mutex::default(),
        }
    }

    /// Builds a model that shares its weights with the others built here.
    ///
    /// # Errors
    /// If the folder cannot be read, if its tensors do not match its `config.json`, or if libtorch fails.
    pub fn model(&self, placement: &Placement) -> Result<Model, ModelError> {
        let config = ModelConfig::read(&self.folder)?;
        let weights = Weights::open(&self.folder)?;
        Model::check(&config, &weights)?;
        let get = |name: &str, device| self.get(&weights, name, device, placement.weights);
        Model::build(config, Parameters::new(Source::Loaded(&get)), placement)
    }

    /// Returns only the LM head, `[vocab_size, hidden_size]`, which a student needs from its teacher. Reads no other
    /// tensor. `config`: the folder's.
    ///
    /// # Errors
    /// If the folder cannot be read or lacks the tensor, or if libtorch fails.
    pub fn head(
        &self,
        config: &ModelConfig,
        device: Device,
        kind: Kind,
    ) -> Result<Tensor, ModelError> {
        let weights = Weights::open_head(&self.folder, &config.head())?;
        let name = weights.names().next().unwrap_or_default().to_owned();
        self.get(&weights, &name, device, kind)
    }

    /// Drops the loaded tensors. Their memory is free once no other user holds them.
    pub fn forget(&self) {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.clear();
    }

    fn get(
        &self,
        weights: &Weights,
        name: &str,
        device: Device,
        kind: Kind,
    ) -> Result<Tensor, ModelError> {
        // After a panic, the map only lacks the tensor, so a poisoned lock is still usable.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), device, kind);
        if let Some(tensor) = loaded.get(&key) {
            return Ok(tensor.shallow_clone());
        }
        let tensor = weights.tensor(name, device, kind)?;
        loaded.insert(key, tensor.shallow_clone());
        Ok(tensor)
    }
}
