//! Weights that nobody changes, in memory once.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use tch::{Device, Kind, Tensor};

use crate::{Model, ModelConfig, ModelError, Placement, Weights, parameters::Parameters};

/// A folder's weights for all who only read them: models on several threads of one device share their
/// tensors, and so does who needs the output matrix alone. Each tensor is loaded when it is first asked for.
///
/// Models made from it must not be trained, nor their weights replaced: the others would see it.
#[derive(Debug)]
pub struct SharedWeights {
    folder: PathBuf,
    loaded: Mutex<HashMap<(String, Device, Kind), Tensor>>,
}

impl SharedWeights {
    /// Reads nothing yet.
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
        Model::build(config, Parameters::of_frozen(&get), placement)
    }

    /// Returns the LM head alone, `[vocab_size, hidden_size]`: what a student needs of its teacher.
    ///
    /// # Errors
    /// If the folder cannot be read or lacks the tensor, or if libtorch fails.
    pub fn head(&self, device: Device, kind: Kind) -> Result<Tensor, ModelError> {
        let name = ModelConfig::read(&self.folder)?.design().head_name();
        self.get(&Weights::open(&self.folder)?, &name, device, kind)
    }

    /// Forgets what was loaded: memory is free again once nobody else has it.
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
        // A panic in between leaves a map without the tensor, which is as good as before.
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
