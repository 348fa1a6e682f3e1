//! Writes a model to a Hugging Face folder.

use std::{fs, io::Write, path::Path};

use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::{
    Model, ModelError,
    replace::{self, MARKER, marker, may_replace},
    safetensors::write_tensors,
    weights::INDEX,
};

/// Tokenizer files that an export copies if they exist.
pub const TOKENIZER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
];

/// How to write a model.
#[derive(Debug, Clone)]
pub struct Export<'a> {
    /// Folder of the original model or of the tokenizer. An export copies its tokenizer files and
    /// `generation_config.json`.
    pub carry_from: &'a Path,
    /// Dtype of the tensors in the file. Default: as in memory.
    pub dtype: Option<Kind>,
    /// Maximum size of a weights file. Only a single tensor can exceed it.
    pub shard_bytes: usize,
    /// Additional files to write: name and text.
    pub beside: &'a [(&'a str, &'a str)],
}

impl<'a> Export<'a> {
    /// Returns the defaults: the dtype that the model has in memory, and shards of at most 5 GB.
    pub fn new(carry_from: &'a Path) -> Self {
        Self {
            carry_from,
            dtype: None,
            shard_bytes: 5_000_000_000,
            beside: &[],
        }
    }
}

impl Model {
    /// Writes `config.json`, the weights, and the copied files. The folder is either complete or absent: it is
    /// written and synced under a temporary name beside its destination, and then replaces an older model in one
    /// step.
    ///
    /// # Errors
    /// If writing fails, if the folder holds anything but a model that this program wrote, or if files are copied
    /// from this folder. In the last two cases the folder stays as it is.
    pub fn save(&self, folder: &Path, export: &Export<'_>) -> Result<(), ModelError> {
        if same_folder(folder, export.carry_from) {
            return Err(ModelError::Source(folder.to_owned()));
        }
        let place = replace::place(folder)?;
        let record = export.beside.first().map(|(name, _)| *name);
        may_replace(folder, record)?;
        let temporary = &place.temporary;
        ddk_files::create_folder(temporary)?;
        let written = self
            .write(temporary, export)
            .and_then(|()| Ok(place.publish(true)?));
        // If `publish` failed in its last step, this is the old model, and the new one is already in place.
        if written.is_err() && temporary.exists() {
            let _ = fs::remove_dir_all(temporary);
        }
        written
    }

    fn write(&self, folder: &Path, export: &Export<'_>) -> Result<(), ModelError> {
        let in_memory = self.parameters().first().map(|(_, tensor)| tensor.kind());
        let kind = export.dtype.or(in_memory).unwrap_or(Kind::Float);
        let dtype = match kind {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            _ => "float32",
        };
        write_json(&folder.join("config.json"), &self.config().to_json(dtype))?;
        let _no_grad = tch::no_grad_guard();
        let shards = shards(self.parameters(), kind, export.shard_bytes);
        let mut files = Map::new();
        for (index, shard) in shards.iter().enumerate() {
            let file = match shards.len() {
                1 => "model.safetensors".to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            // Copy and cast only one shard at a time.
            let tensors = shard
                .iter()
                .map(|(name, tensor)| {
                    let copy = tensor.detach().f_to_kind(kind)?.f_to_device(Device::Cpu)?;
                    Ok((name.clone(), copy))
                })
                .collect::<Result<Vec<_>, ModelError>>()?;
            ddk_files::write(&folder.join(&file), |out| write_tensors(&tensors, &[], out))?;
            files.extend(tensors.into_iter().map(|(name, _)| (name, json!(file))));
        }
        if shards.len() > 1 {
            let total: usize = self.parameters().iter().map(|one| bytes(one, kind)).sum();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": files });
            write_json(&folder.join(INDEX), &index)?;
        }
        let copied = TOKENIZER_FILES
            .into_iter()
            .chain(["generation_config.json"]);
        for name in copied {
            let from = export.carry_from.join(name);
            if from.exists() {
                let bytes = fs::read(&from).map_err(ModelError::io("copy", &from))?;
                write(&folder.join(name), &bytes)?;
            }
        }
        for (name, text) in export.beside {
            write(&folder.join(name), text.as_bytes())?;
        }
        let marker = marker(folder)?;
        write(&folder.join(MARKER), marker.as_bytes())
    }
}

/// Whether two paths lead to the same folder.
pub fn same_folder(one: &Path, other: &Path) -> bool {
    let other = fs::canonicalize(other);
    fs::canonicalize(one).is_ok_and(|one| other.is_ok_and(|other| one == other))
}

/// Splits the parameters, in order, so that no file grows past `limit` bytes.
fn shards(parameters: &[(String, Tensor)], kind: Kind, limit: usize) -> Vec<&[(String, Tensor)]> {
    let (mut shards, mut start, mut size) = (Vec::new(), 0, 0);
    for (index, parameter) in parameters.iter().enumerate() {
        let more = bytes(parameter, kind);
        if size + more > limit && index > start {
            shards.push(&parameters[start..index]);
            (start, size) = (index, 0);
        }
        size += more;
    }
    shards.push(&parameters[start..]);
    shards
}

fn bytes((_, tensor): &(String, Tensor), kind: Kind) -> usize {
    tensor.numel() * kind.elt_size_in_bytes()
}

fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    write(path, text.as_bytes())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ModelError> {
    Ok(ddk_files::write(path, |out| out.write_all(bytes))?)
}
