//! Describes the inputs and the contents of a prepared domain.

use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    CorpusError, DomainSource, FileFormat, Limits, PrepareOptions, Template, TokenSource,
    TokenizerFolder,
    source::{SourceFile, Use},
};

pub(crate) const MANIFEST: &str = "manifest.json";
/// Incremented when the format, or the way its contents are produced, changes.
pub(crate) const FORMAT: u32 = 6;
/// The files that hold a domain's documents, sorted.
pub(crate) const DATA_FILES: [&str; 8] = [
    "documents.bin",
    "masked-documents.bin",
    "masked.bin",
    "tokens.bin",
    "validation-documents.bin",
    "validation-masked-documents.bin",
    "validation-masked.bin",
    "validation-tokens.bin",
];

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) made_from: MadeFrom,
    /// Bytes per token: 2 or 4.
    pub(crate) token_bytes: usize,
    pub(crate) tokens: u64,
    pub(crate) documents: u64,
    pub(crate) text_bytes: u64,
    pub(crate) validation_tokens: u64,
    pub(crate) validation_documents: u64,
    /// Documents set aside for validation that are not used, because there are enough. Earlier manifests lack it.
    #[serde(default)]
    pub(crate) spare: u64,
    /// Exact duplicates left out.
    pub(crate) duplicates: u64,
    /// Documents left out because they are too short.
    pub(crate) short: u64,
    pub(crate) quarantined: u64,
    /// The data files. A file that a later format adds gets block checksums if it is listed here.
    pub(crate) files: BTreeMap<String, FileRecord>,
    /// Bytes per block; each block has a checksum.
    pub(crate) block_bytes: u64,
    /// BLAKE3 of the file with the block checksums.
    pub(crate) checksums_hash: String,
    /// BLAKE3 of the names and hashes of the data files.
    pub(crate) content_hash: String,
}

/// A data file in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    pub(crate) bytes: u64,
    /// BLAKE3 of the whole file.
    pub(crate) hash: String,
}

/// Everything that the data files depend on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct MadeFrom {
    pub(crate) sources: Vec<SourceFile>,
    pub(crate) validation_sources: Vec<SourceFile>,
    /// The format that overrides the files' extensions.
    pub(crate) format: Option<FileFormat>,
    pub(crate) text: String,
    pub(crate) prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) chat: Option<MadeFromChat>,
    /// The field that holds token ids. Manifests of texts do not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tokens: Option<String>,
    pub(crate) only: Option<(String, String)>,
    pub(crate) limits: Limits,
    /// The seed that chooses documents; `None` if no limit needs it.
    pub(crate) seed: Option<u64>,
    /// `Share` or `Count`: manifests have used these names from the start.
    pub(crate) validation_split: String,
    pub(crate) validation_fraction: f64,
    pub(crate) validation_documents: usize,
    pub(crate) tokenizer_hash: String,
}

/// What conversations depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MadeFromChat {
    pub(crate) messages: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) completion: Option<String>,
    pub(crate) tools: String,
    pub(crate) template_hash: String,
}

impl MadeFrom {
    /// Returns the current inputs of a domain.
    pub(crate) fn now(
        options: &PrepareOptions,
        domain: &DomainSource,
        tokenizer: &TokenizerFolder,
    ) -> Result<Self, CorpusError> {
        if let Some(tokens) = &domain.tokens {
            check_tokenizer(&domain.name, tokens, tokenizer)?;
        }
        let source = |template: &Template| template.source().to_owned();
        Ok(Self {
            sources: domain.expand(&domain.files)?,
            validation_sources: domain.expand(&domain.validation_files)?,
            format: domain.format,
            text: source(&domain.text),
            prompt: domain.prompt.as_ref().map(source),
            chat: domain.chat.as_ref().map(|chat| MadeFromChat {
                messages: chat.messages.clone(),
                completion: chat.completion.clone(),
                tools: chat.tools.clone(),
                template_hash: chat.template.hash().to_owned(),
            }),
            tokens: domain.tokens_field().cloned(),
            only: domain.only.clone(),
            limits: domain.limits,
            seed: domain.limits.chooses().then_some(options.seed),
            validation_split: format!("{:?}", options.validation_split),
            validation_fraction: options.validation_fraction,
            validation_documents: options.validation_documents,
            tokenizer_hash: tokenizer.hash().to_owned(),
        })
    }

    /// Returns all files in reading order, with the initial use of their documents.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&SourceFile, Use)> {
        let validation = self.validation_sources.iter();
        let train = self.sources.iter();
        validation
            .map(|file| (file, Use::Validation))
            .chain(train.map(|file| (file, Use::Train)))
    }

    /// Describes the first difference in words.
    pub(crate) fn difference(&self, now: &Self) -> Option<String> {
        if self.tokenizer_hash != now.tokenizer_hash {
            return Some("the tokenizer has changed".to_owned());
        }
        if self.format != now.format {
            return Some("the setting format has changed".to_owned());
        }
        let of_files = files_differ(&self.sources, &now.sources)
            .or_else(|| files_differ(&self.validation_sources, &now.validation_sources));
        if of_files.is_some() {
            return of_files;
        }
        if let (Some(then), Some(now)) = (&self.chat, &now.chat)
            && then.template_hash != now.template_hash
        {
            return Some("the chat template has changed".to_owned());
        }
        let settings = [
            (
                "messages_field, completion_field or tools_field",
                self.chat != now.chat,
            ),
            ("text_template or text_field", self.text != now.text),
            ("prompt_template", self.prompt != now.prompt),
            ("tokens_field", self.tokens != now.tokens),
            ("filter_field or filter_value", self.only != now.only),
            (
                "max_bytes, max_documents, max_tokens, min_document_bytes or max_document_bytes",
                self.limits != now.limits,
            ),
            (
                "corpus.seed (or run.seed if it is not set)",
                self.seed != now.seed,
            ),
            (
                "validation_split",
                self.validation_split != now.validation_split,
            ),
            (
                "validation_fraction",
                self.validation_fraction != now.validation_fraction,
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

/// Checks that the tokenizer that made a domain's ids is the corpus's.
fn check_tokenizer(
    domain: &str,
    tokens: &TokenSource,
    corpus: &TokenizerFolder,
) -> Result<(), CorpusError> {
    let theirs_hash = TokenizerFolder::hash_file(&tokens.tokenizer)?;
    if theirs_hash == corpus.file_hash() {
        return Ok(());
    }
    Err(CorpusError::OtherTokenizer {
        domain: domain.to_owned(),
        theirs: tokens.tokenizer.clone(),
        theirs_hash,
        ours: corpus.folder().to_owned(),
        ours_hash: corpus.file_hash().to_owned(),
    })
}

fn files_differ(then: &[SourceFile], now: &[SourceFile]) -> Option<String> {
    for source in now {
        match then.iter().find(|old| old.path == source.path) {
            None => return Some(format!("{} is new", source.path.display())),
            Some(old) if old != source => {
                return Some(format!("{} has changed", source.path.display()));
            }
            Some(_) => {}
        }
    }
    then.iter()
        .find(|old| !now.iter().any(|source| source.path == old.path))
        .map(|gone| format!("{} is gone", gone.path.display()))
}

impl Manifest {
    /// Whether its documents have a loss mask.
    pub(crate) fn is_masked(&self) -> bool {
        let from = &self.made_from;
        from.prompt.is_some() || from.chat.is_some() || from.tokens.is_some()
    }

    /// Reads the manifest of a prepared domain; `None` if there is none.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, CorpusError> {
        let path = folder.join(MANIFEST);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(CorpusError::io("read", &path))?;
        let damaged = |error: serde_json::Error| CorpusError::damaged(&path, error.to_string());
        let manifest: Value = serde_json::from_str(&text).map_err(damaged)?;
        // This version cannot read the manifest of another version. DDK prepares such a domain again.
        if manifest["format"] != FORMAT {
            return Ok(None);
        }
        Ok(Some(serde_json::from_value(manifest).map_err(damaged)?))
    }
}
