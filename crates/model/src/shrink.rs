//! Makes a shallower model from a deeper one.

use std::{collections::HashMap, path::Path};

use serde_json::Value;
use tch::{Device, Tensor};

use crate::{
    Model, ModelConfig, ModelError,
    parameters::{Parameters, Source},
};

/// Keys of the number of layers, by family.
const LAYER_COUNTS: [&str; 2] = ["num_hidden_layers", "n_layer"];
/// Keys of lists with one entry per layer.
const LAYER_LISTS: [&str; 1] = ["layer_types"];
/// Keys of a number of layers that cannot exceed the count.
const LAYER_LIMITS: [&str; 1] = ["max_window_layers"];

impl ModelConfig {
    /// The configuration of a model with only these layers, counted from 0.
    ///
    /// # Errors
    /// If no model can have it.
    pub fn with_layers(&self, kept: &[usize]) -> Result<Self, ModelError> {
        let mut raw = self.raw().clone();
        for key in LAYER_COUNTS {
            if let Some(count) = raw.get_mut(key) {
                *count = kept.len().into();
            }
        }
        for key in LAYER_LISTS {
            if let Some(Value::Array(list)) = raw.get_mut(key) {
                let of = |&layer: &usize| list.get(layer).cloned();
                *list = kept.iter().filter_map(of).collect();
            }
        }
        for key in LAYER_LIMITS {
            if let Some(limit) = raw.get_mut(key) {
                let least = limit.as_u64().unwrap_or(u64::MAX).min(kept.len() as u64);
                *limit = least.into();
            }
        }
        Self::of_raw(raw)
    }
}

impl Model {
    /// Returns the hidden states `[batch, time, hidden_size]` before the first layer and after each layer, from token
    /// ids `[batch, time]` (i64): one more than the model has layers.
    ///
    /// # Errors
    /// If libtorch fails, for example because memory runs out.
    pub fn layer_states(&self, tokens: &Tensor) -> Result<Vec<Tensor>, ModelError> {
        let padded = self.decoder.pad(tokens, None)?;
        let rows = self.decoder.look_up(&padded.tokens)?;
        let place = padded.place();
        let mut state = self.decoder.embed(&rows, place)?;
        let mut states = vec![padded.cut(&state)?];
        for index in 0..self.decoder.layers() {
            state = self.decoder.layer(index, &state, place, None)?;
            states.push(padded.cut(&state)?);
        }
        Ok(states)
    }

    /// Builds a model that shares the weights of this one, with only the layers `kept`, counted from 0 and in order.
    ///
    /// # Errors
    /// If a layer does not exist or no layer is kept, or if libtorch fails.
    pub fn with_layers(&self, kept: &[usize]) -> Result<Self, ModelError> {
        let count = self.decoder.layers();
        if let Some(&layer) = kept.iter().find(|layer| **layer >= count) {
            let number = layer + 1;
            return Err(ModelError::NoLayer { number, count });
        }
        let config = self.config().with_layers(kept)?;
        let prefix = format!("{}.", config.design().names.layers);
        let own: HashMap<&str, &Tensor> = self
            .parameters()
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor))
            .collect();
        let get = |name: &str, device: Device| {
            let old = old_name(name, &prefix, kept);
            let name = old.as_deref().unwrap_or(name);
            let found = own.get(name).ok_or_else(|| {
                let reason = format!("with fewer layers, it needs the parameter `{name}`");
                ModelError::malformed(Path::new("config.json"), reason)
            })?;
            Ok(found.f_to_device(device)?)
        };
        Self::build(
            config,
            Parameters::new(Source::Loaded(&get)),
            self.placement(),
        )
    }
}

/// The name that a layer's parameter has in the deeper model; `None` if it belongs to no layer.
fn old_name(name: &str, prefix: &str, kept: &[usize]) -> Option<String> {
    let (number, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    let old = kept.get(number.parse::<usize>().ok()?)?;
    Some(format!("{prefix}{old}.{rest}"))
}
