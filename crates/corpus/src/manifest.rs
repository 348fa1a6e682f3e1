//! What a prepared domain was made from, and what it holds.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{CorpusError, source::SourceFile};

pub(crate) const MANIFEST: &str = "manifest.json";
/// Raised when the format, or what it is made by, changes.
pub(crate) const FORMAT: u32 = 1;
/// The files whose bytes make the content hash.
pub(crate) const DATA_FILES: [&str; 4] = [
    "tokens.bin",
    "documents.bin",
    "validation-tokens.bin",
    "validation-documents.bin",
];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) made_from: MadeFrom,
    /// Bytes of a token: 2 or 4.
    pub(crate) token_bytes: usize,
    pub(crate) tokens: u64,
    pub(crate) documents: u64,
    pub(crate) text_bytes: u64,
    pub(crate) validation_tokens: u64,
    pub(crate) validation_documents: u64,
    /// Exact duplicates that were left out.
    pub(crate) duplicates: u64,
    pub(crate) quarantined: u64,
    /// Of the data files.
    pub(crate) content_hash: String,
}

/// All that the data files depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MadeFrom {
    pub(crate) sources: Vec<SourceFile>,
    pub(crate) text_field: String,
    #[serde(default)]
    pub(crate) only: Option<(String, String)>,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) seed: u64,
    pub(crate) validation_share: f64,
    pub(crate) validation_documents: usize,
    pub(crate) tokenizer_hash: String,
}

impl MadeFrom {
    /// The first difference, in words.
    pub(crate) fn difference(&self, now: &Self) -> Option<String> {
        if self.tokenizer_hash != now.tokenizer_hash {
            return Some("the tokenizer has changed".to_owned());
        }
        for source in &now.sources {
            match self.sources.iter().find(|old| old.path == source.path) {
                None => return Some(format!("{} is new", source.path.display())),
                Some(old) if old != source => {
                    return Some(format!("{} has changed", source.path.display()));
                }
                Some(_) => {}
            }
        }
        if let Some(gone) = self
            .sources
            .iter()
            .find(|old| !now.sources.iter().any(|source| source.path == old.path))
        {
            return Some(format!("{} is gone", gone.path.display()));
        }
        let settings = [
            ("text_field", self.text_field != now.text_field),
            ("domain_field", self.only != now.only),
            ("max_bytes", self.max_bytes != now.max_bytes),
            ("run.seed", self.seed != now.seed),
            (
                "validation_share",
                self.validation_share != now.validation_share,
            ),
            (
                "validation_documents",
                self.validation_documents != now.validation_documents,
            ),
        ];
        settings
            .into_iter()
            .find(|(_, differs)| *differs)
            .map(|(name, _)| format!("the setting {name} has changed"))
    }
}

impl Manifest {
    /// The manifest of a prepared domain; `None` where there is none.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, CorpusError> {
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(CorpusError::io("read", &path))?;
        let manifest = serde_json::from_str(&text)
            .map_err(|error| CorpusError::damaged(&path, error.to_string()))?;
        Ok(Some(manifest))
    }
}
