//! The demo's text: one JSON Lines file per domain, the same on every machine.
//!
//! `tools/demo-text/fetch` downloads the source documents to the cache folder. A fixed shuffle, independent of
//! their order, decides which documents fit into a domain's limit. `tools/demo-text/expected.toml` holds the hash
//! of each domain's text at the shipped limit.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use crate::hint::Hint;

/// The domains that have source documents.
pub const NAMES: [&str; 5] = ["cpp", "data", "prose", "python", "rust"];

/// Seed for choosing documents. It is not the run's seed, because runs with different seeds are compared on the
/// same text.
const SEED: u64 = 0;

/// Hint for missing or wrong documents.
const FETCH: &str = "run `make demo-text` in a clone of the repository: it downloads the demo's source documents \
                     to the cache folder (DDK_CACHE, by default $XDG_CACHE_HOME/ddk or ~/.cache/ddk)";

/// A source document. Also a line of a domain's text, in which the text comes first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Document {
    source: String,
    text: String,
}

/// The text that a domain must have, according to `tools/demo-text/expected.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    max_bytes: u64,
    blake3: String,
}

/// The one text file of a domain.
pub struct Place<'settings> {
    /// The domain.
    pub domain: &'settings str,
    /// Its file.
    pub file: &'settings Path,
    /// Maximum bytes of text in it.
    pub max_bytes: u64,
    /// The hash of the text, if `max_bytes` is the shipped limit.
    pub expected: Option<String>,
}

/// A domain's text.
#[derive(Default)]
pub struct Collected {
    /// The content of its file.
    pub jsonl: Vec<u8>,
    /// Documents in it.
    pub documents: usize,
    /// Bytes of their text.
    pub bytes: u64,
}

/// Returns the expected hash of a domain's text if this limit is the shipped one.
///
/// # Errors
/// If the built-in `expected.toml` cannot be parsed.
pub fn expected_hash(domain: &str, max_bytes: u64) -> Result<Option<String>> {
    let mut all: BTreeMap<String, Expected> =
        toml::from_str(include_str!("../../../tools/demo-text/expected.toml"))
            .context("tools/demo-text/expected.toml")?;
    let of_limit = all.remove(domain);
    let of_limit = of_limit.filter(|expected| expected.max_bytes == max_bytes);
    Ok(of_limit.map(|expected| expected.blake3))
}

/// Returns the hash of a text in the format of `tools/demo-text/expected.toml`.
pub fn hash(jsonl: &[u8]) -> String {
    blake3::hash(jsonl).to_hex().to_string()
}

/// Chooses the text of each domain from its documents in the cache folder, up to the domain's `max_bytes`.
///
/// # Errors
///
/// If a domain has no documents, if they cannot be read, or if a text is not the expected one. The error lists all
/// wrong texts with their hashes.
pub fn collect(places: &[Place<'_>]) -> Result<Vec<Collected>> {
    let folder = cache_folder()?.join("demo-text");
    let mut texts = Vec::new();
    let mut wrong = Vec::new();
    for place in places {
        let domain = place.domain;
        if !NAMES.contains(&domain) {
            return Err(anyhow!(
                "the demo has no text for the domain `{domain}` (it has {})",
                NAMES.join(", ")
            ))
            .hint("give the domain `files` of your own and run `ddk prepare`, `ddk pretrain` and `ddk train` instead");
        }
        let documents = read(&folder.join(format!("{domain}.jsonl.gz")))
            .with_context(|| format!("cannot read the documents for the domain `{domain}`"))
            .hint(FETCH)?;
        let text = choose(domain, documents, place.max_bytes)?;
        let found = hash(&text.jsonl);
        if let Some(expected) = place.expected.as_ref().filter(|hash| **hash != found) {
            wrong.push(format!("{domain}: {found}, expected {expected}"));
        }
        texts.push(text);
    }
    if wrong.is_empty() {
        return Ok(texts);
    }
    Err(anyhow!(
        "the documents in {} do not produce this version's demo text (blake3)\n{}",
        folder.display(),
        wrong.join("\n")
    ))
    .hint(format!("remove {} and {FETCH}", folder.display()))
}

/// Returns the download folder of the tools in `tools/`, by the same rule as theirs.
fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| {
        let folder = env::var_os(name).map(PathBuf::from);
        folder.filter(|folder| !folder.as_os_str().is_empty())
    };
    set("DDK_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("ddk")))
        .or_else(|| Some(set("HOME")?.join(".cache/ddk")))
        .context("the cache folder is unknown: none of DDK_CACHE, XDG_CACHE_HOME and HOME is set")
        .hint("set DDK_CACHE to the cache folder that `make demo-text` used")
}

fn read(path: &Path) -> Result<Vec<Document>> {
    let of_file = || path.display().to_string();
    let file = fs::File::open(path).with_context(of_file)?;
    let lines = BufReader::new(MultiGzDecoder::new(file)).lines();
    let documents = lines.map(|line| Ok(serde_json::from_str(&line?)?));
    documents.collect::<Result<_>>().with_context(of_file)
}

/// Chooses the text of a domain, whatever the order of its documents.
fn choose(domain: &str, mut documents: Vec<Document>, max_bytes: u64) -> Result<Collected> {
    documents.sort();
    let mut rng = ddk_order::stream(SEED, &format!("demo sources {domain}"), &[]);
    ddk_order::shuffle(&mut documents, &mut rng);
    let mut collected = Collected::default();
    for Document { source, text } in &documents {
        let length = text.len() as u64;
        // A shorter document may still fit.
        if collected.bytes + length > max_bytes {
            continue;
        }
        collected.documents += 1;
        collected.bytes += length;
        let line = serde_json::json!({ "text": text, "source": source });
        serde_json::to_writer(&mut collected.jsonl, &line)?;
        collected.jsonl.push(b'\n');
    }
    Ok(collected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Vec<Document> {
        let document = |index: usize| Document {
            source: format!("package-1.0.0/{index}.rs"),
            text: "fn main() {}\n".repeat(index),
        };
        (1..200).map(document).collect()
    }

    #[test]
    fn the_text_does_not_depend_on_the_order_of_the_documents() {
        let text = |documents| choose("rust", documents, 20_000).unwrap();
        let sorted = text(documents());
        let mut reversed = documents();
        reversed.reverse();
        let mut rotated = documents();
        rotated.rotate_left(77);
        assert!(sorted.jsonl == text(reversed).jsonl);
        assert!(sorted.jsonl == text(rotated).jsonl);

        assert!(sorted.bytes <= 20_000 && sorted.bytes > 19_000);
        let lines: Vec<Document> = sorted
            .jsonl
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        assert_eq!(lines.len(), sorted.documents);
        assert!(lines.iter().all(|line| documents().contains(line)));
        // The documents are shuffled, not just the first ones in order.
        assert!(!lines.is_sorted());
    }

    #[test]
    fn each_domain_has_its_expected_text_at_the_shipped_limit_alone() {
        let shipped = include_str!("../../../config/demo.toml");
        let shipped: toml::Table = toml::from_str(shipped).unwrap();
        for name in NAMES {
            let limit = shipped["domains"][name]["max_bytes"].as_integer().unwrap() as u64;
            assert_eq!(
                expected_hash(name, limit).unwrap().map(|hash| hash.len()),
                Some(64)
            );
            assert_eq!(expected_hash(name, limit + 1).unwrap(), None);
        }
    }
}
