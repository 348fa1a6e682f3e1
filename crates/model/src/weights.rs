//! Reads the tensors of a model folder, from one file or from shards.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::{
    ModelError,
    fields::read_json,
    safetensors::{TensorFile, read_tensors},
};

const SINGLE: &str = "model.safetensors";
/// Maps each tensor to its shard.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The tensors of a folder by name, memory-mapped and not yet copied.
#[derive(Debug)]
pub struct Weights {
    folder: PathBuf,
    files: Vec<TensorFile>,
    /// Tensor name to index in `files`.
    names: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether a shard's name is a plain file name, so that an index cannot point to files outside its folder.
fn is_file_name(shard: &str) -> bool {
    Path::new(shard).file_name() == Some(shard.as_ref())
}

/// Whether a tensor is the LM head with this name ([`ModelConfig::head`](crate::ModelConfig::head)), perhaps in a
/// larger model: in one of text and images, a prefix precedes the names of the language model.
pub fn is_head(name: &str, tensor: &str) -> bool {
    let end = name.trim_start_matches("model.");
    tensor == name
        || tensor
            .strip_suffix(end)
            .is_some_and(|prefix| prefix.ends_with('.'))
}

impl Weights {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// If the folder has no weights, if the weights cannot be read, or if the index names a shard outside the
    /// folder.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_with(folder, |_| true)
    }

    /// Works like [`Self::open`], but opens only the shards with tensors whose names are `wanted`. The other shards
    /// may be missing.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_with(folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self, ModelError> {
        let index = folder.join(INDEX);
        let files = if folder.join(SINGLE).exists() {
            vec![read_tensors(&folder.join(SINGLE))?]
        } else if index.exists() {
            let parsed: Index = read_json(&index)?;
            let shards = parsed.weight_map.into_iter();
            let shards = shards.filter(|(name, _)| wanted(name));
            let shards: BTreeSet<String> = shards.map(|(_, shard)| shard).collect();
            if let Some(shard) = shards.iter().find(|shard| !is_file_name(shard)) {
                let reason = format!(
                    "the shard {shard:?} is not in the model's folder: expected a file name without a path"
                );
                return Err(ModelError::malformed(&index, reason));
            }
            let files = shards.iter().map(|shard| read_tensors(&folder.join(shard)));
            files.collect::<Result<_, _>>()?
        } else if folder.join("pytorch_model.bin").exists()
            || folder.join("pytorch_model.bin.index.json").exists()
        {
            return Err(ModelError::Pickled(folder.to_owned()));
        } else {
            return Err(ModelError::NotAModel {
                folder: folder.to_owned(),
                missing: SINGLE,
            });
        };
        let names = files
            .iter()
            .enumerate()
            .flat_map(|(index, file)| file.names().into_iter().map(move |name| (name, index)))
            .collect();
        Ok(Self {
            folder: folder.to_owned(),
            files,
            names,
        })
    }

    /// Opens the LM head alone, given its name and shape ([`ModelConfig::head`](crate::ModelConfig::head)). The folder
    /// need not hold any other tensor.
    ///
    /// # Errors
    /// As for [`Self::open`], or if the folder lacks the LM head.
    pub fn open_head(folder: &Path, head: &(String, Vec<i64>)) -> Result<Self, ModelError> {
        let (name, shape) = head;
        let is_head = |other: &str| is_head(name, other);
        let mut weights = Self::open_with(folder, is_head)?;
        let named = weights.names.keys().filter(|other| is_head(other));
        // The exact name first, if the folder has it.
        let found = named.min_by_key(|other| *other != name).cloned();
        let found = found.unwrap_or_else(|| name.clone());
        weights.names.retain(|other, _| *other == found);
        weights.check(&[(found, shape.clone())], |_| false)?;
        Ok(weights)
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Copies one tensor to `device` in dtype `kind`.
    ///
    /// # Errors
    /// If there is no such tensor, if its dtype is not supported, or if libtorch fails.
    pub fn tensor(&self, name: &str, device: Device, kind: Kind) -> Result<Tensor, ModelError> {
        let (file, shape) = self.find(name).ok_or_else(|| ModelError::Tensors {
            folder: self.folder.clone(),
            problems: vec![format!("  missing: {name}")],
        })?;
        file.tensor_on(name, &shape, device, kind)
    }

    /// Compares names and shapes with those that a model needs. `may_be_there` accepts other names that are allowed
    /// (buffers that old programs saved, the copy of a tied LM head).
    ///
    /// # Errors
    /// If a tensor is missing, unexpected, or of the wrong shape. The error lists all of them.
    pub fn check(
        &self,
        needed: &[(String, Vec<i64>)],
        may_be_there: impl Fn(&str) -> bool,
    ) -> Result<(), ModelError> {
        let mut problems = Vec::new();
        for (name, shape) in needed {
            match self.find(name) {
                None => problems.push(format!("  missing: {name}, shape {shape:?}")),
                Some((file, found)) if found != *shape => problems.push(format!(
                    "  wrong shape: {name} is {found:?} in {}, expected {shape:?}",
                    file.path().display()
                )),
                Some(_) => {}
            }
        }
        for (name, &file) in &self.names {
            if !needed.iter().any(|(needed, _)| needed == name) && !may_be_there(name) {
                problems.push(format!(
                    "  unexpected: {name} in {}",
                    self.files[file].path().display()
                ));
            }
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(ModelError::Tensors {
            folder: self.folder.clone(),
            problems,
        })
    }

    /// Total bytes of the tensors in the files.
    pub fn bytes(&self) -> u64 {
        let bytes = |(name, file): (&String, &usize)| self.files[*file].bytes(name);
        let all = self.names.iter().filter_map(bytes);
        all.map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// Total number of elements of the tensors.
    pub fn elements(&self) -> u64 {
        let shape = |(name, file): (&String, &usize)| self.files[*file].shape(name);
        let shapes = self.names.iter().filter_map(shape);
        shapes
            .map(|shape| shape.iter().product::<i64>().unsigned_abs())
            .sum()
    }

    /// Hashes all tensors (names, shapes, dtypes, and bytes). The hash does not depend on sharding. After each
    /// tensor, calls `told` with the number of bytes hashed so far and the total.
    pub fn hash(&self, mut told: impl FnMut(u64, u64)) -> String {
        let tensors = self.names.iter().filter_map(|(name, &file)| {
            let (dtype, bytes) = self.files[file].bytes(name)?;
            Some((name, dtype, self.files[file].shape(name)?, bytes))
        });
        let total = tensors.clone().map(|(.., bytes)| bytes.len() as u64).sum();
        let (mut hasher, mut done) = (blake3::Hasher::new(), 0);
        for (name, dtype, shape, bytes) in tensors {
            hasher.update(format!("{name} {dtype:?} {shape:?}\n").as_bytes());
            hasher.update(bytes);
            done += bytes.len() as u64;
            told(done, total);
        }
        hasher.finalize().to_hex().to_string()
    }

    fn find(&self, name: &str) -> Option<(&TensorFile, Vec<i64>)> {
        let file = &self.files[*self.names.get(name)?];
        Some((file, file.shape(name)?))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::{ModelConfig, safetensors::write_tensors};

    #[test]
    fn the_head_alone_is_enough_for_a_served_model() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path();
        let config =
            json!({ "architectures": ["NewForCausalLM"], "vocab_size": 6, "hidden_size": 4 });
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let head = ModelConfig::read_served(folder).unwrap().head();
        let write = |shard: &str, name: &str, rows| {
            let tensor = Tensor::randn([rows, 4], (Kind::Float, Device::Cpu));
            let mut file = fs::File::create(folder.join(shard)).unwrap();
            write_tensors(&[(name.to_owned(), tensor)], &[], &mut file).unwrap();
        };
        // The shard of the layers is not here.
        let index = json!({ "weight_map": {
            "language_model.model.layers.0.mlp.up_proj.weight": "1.safetensors",
            "language_model.lm_head.weight": "2.safetensors",
        } });
        fs::write(folder.join(INDEX), index.to_string()).unwrap();
        write("2.safetensors", "language_model.lm_head.weight", 6);
        let opened = Weights::open_head(folder, &head).unwrap();
        assert_eq!(
            opened.names().collect::<Vec<_>>(),
            ["language_model.lm_head.weight"]
        );
        assert!(Weights::open(folder).is_err());
        for (name, rows, wrong) in [
            ("language_model.lm_head.weight", 5, "[5, 4]"),
            ("another.weight", 6, "missing: lm_head.weight"),
        ] {
            write("2.safetensors", name, rows);
            let error = Weights::open_head(folder, &head).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn an_index_never_leads_out_of_its_folder() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("model");
        fs::create_dir_all(folder.join("inside")).unwrap();
        for outside in [
            "../x.safetensors",
            "/etc/passwd",
            "inside/x.safetensors",
            "..",
            ".",
            "",
        ] {
            let index = serde_json::json!({ "weight_map": { "a": outside } });
            fs::write(folder.join(INDEX), index.to_string()).unwrap();
            let error = Weights::open(&folder).unwrap_err().to_string();
            let named = error.contains(&format!("{outside:?}")) && error.contains(INDEX);
            assert!(named && error.contains("expected a file name"), "{error}");
        }
    }
}
