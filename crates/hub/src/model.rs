//! Which files of a model DDK reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::Deserialize;

use crate::{HubError, Name};

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Everything but the weights.
const SMALL: [&str; 13] = [
    CONFIG,
    "generation_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];

/// Given the folder with a model's `config.json`, tells which tensors are wanted. `None`: the model cannot be used.
pub type Choice<'a> = dyn Fn(&Path) -> Option<IsWanted> + 'a;

/// Whether a tensor of this name is wanted.
pub type IsWanted = Box<dyn Fn(&str) -> bool>;

/// The parts of a model to have.
pub enum Parts<'a> {
    /// All of it.
    All,
    /// The tokenizer alone.
    Tokenizer,
    /// No other weights than the files with these tensors.
    Tensors(&'a Choice<'a>),
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether DDK reads a file that holds no weights.
pub(crate) fn is_small(path: &str) -> bool {
    SMALL.contains(&path)
}

/// Fails if the wanted parts have weights, and a repository with these files has none that DDK reads.
pub(crate) fn has_weights(name: &Name, all: &[String], parts: &Parts<'_>) -> Result<(), HubError> {
    let has = |file: &str| all.iter().any(|path| path == file);
    if has(SINGLE) || has(INDEX) || matches!(parts, Parts::Tokenizer) {
        return Ok(());
    }
    let is_pickled = |path: &&String| {
        let is_model = ["pytorch_model", "model", "consolidated"]
            .iter()
            .any(|start| path.starts_with(start));
        let pickled = [".bin", ".pt", ".pth"];
        is_model && pickled.iter().any(|end| path.ends_with(end))
    };
    Err(match all.iter().find(is_pickled) {
        Some(file) => HubError::Pickled {
            name: name.to_string(),
            file: file.clone(),
        },
        None => HubError::lacks(
            name,
            SINGLE,
            format!("expected weights in {SINGLE}, or in shards with an index"),
        ),
    })
}

/// The files with the wanted weights. The folder holds the index, if there is one.
pub(crate) fn weights(
    name: &Name,
    folder: &Path,
    all: &[String],
    parts: &Parts<'_>,
) -> Result<Vec<String>, HubError> {
    has_weights(name, all, parts)?;
    let wanted: IsWanted = match parts {
        Parts::Tokenizer => return Ok(Vec::new()),
        Parts::All => Box::new(|_| true),
        Parts::Tensors(choice) => match choice(folder) {
            Some(wanted) => wanted,
            None => return Ok(Vec::new()),
        },
    };
    if all.iter().any(|path| path == SINGLE) {
        return Ok(vec![SINGLE.to_owned()]);
    }
    let path = folder.join(INDEX);
    let malformed = |reason: String| HubError::Malformed {
        file: path.clone(),
        reason,
    };
    let text = fs::read(&path).map_err(crate::error::disk("read", &path))?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    let shards = index
        .weight_map
        .into_iter()
        .filter(|(tensor, _)| wanted(tensor));
    let shards: BTreeSet<String> = shards.map(|(_, shard)| shard).collect();
    if let Some(shard) = shards
        .iter()
        .find(|shard| shard.contains('/') || !all.contains(shard))
    {
        return Err(malformed(format!(
            "the shard {shard:?} is not in the repository"
        )));
    }
    Ok(shards.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> Name {
        Name::model("a/b").unwrap().unwrap()
    }

    fn names(files: &[&str]) -> Vec<String> {
        files.iter().map(|file| (*file).to_owned()).collect()
    }

    #[test]
    fn an_index_chooses_the_shards() {
        let scratch = tempfile::tempdir().unwrap();
        let index = |shard: &str| {
            let map =
                serde_json::json!({ "weight_map": { "head": "2.safetensors", "body": shard } });
            fs::write(scratch.path().join(INDEX), map.to_string()).unwrap();
        };
        index("1.safetensors");
        let all = names(&["1.safetensors", "2.safetensors", "3.safetensors", INDEX]);
        let of = |parts: &Parts<'_>| {
            weights(&name(), scratch.path(), &all, parts).map_err(|e| e.to_string())
        };
        assert_eq!(of(&Parts::All).unwrap(), ["1.safetensors", "2.safetensors"]);
        let head = |_: &Path| -> Option<IsWanted> { Some(Box::new(|tensor| tensor == "head")) };
        assert_eq!(of(&Parts::Tensors(&head)).unwrap(), ["2.safetensors"]);
        assert_eq!(of(&Parts::Tensors(&|_| None)).unwrap(), [""; 0]);
        assert_eq!(of(&Parts::Tokenizer).unwrap(), [""; 0]);
        index("../1.safetensors");
        assert!(of(&Parts::All).unwrap_err().contains("../1.safetensors"));
    }

    #[test]
    fn pickled_weights_are_refused_with_their_conversion() {
        let error =
            has_weights(&name(), &names(&[CONFIG, "pytorch_model.bin"]), &Parts::All).unwrap_err();
        assert!(error.to_string().contains("pytorch_model.bin"));
        assert!(error.advice().unwrap().contains("from_pretrained(\"a/b\")"));
        let error = has_weights(&name(), &names(&[CONFIG, "model.gguf"]), &Parts::All).unwrap_err();
        assert!(error.to_string().contains("no model.safetensors"));
    }
}
