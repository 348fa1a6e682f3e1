//! Finds the source files of a domain.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use ddk_files::FileError;
use serde::{Deserialize, Serialize};

use crate::{
    Chat, CorpusError, FileFormat, Template,
    format::{Format, decide, pair},
};

/// Where a domain's text comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainSource {
    /// The domain's name.
    pub name: String,
    /// Files, folders (searched recursively) or globs. A pattern that starts with `!` leaves files out. Files of JSON,
    /// Parquet, Arrow, CSV and TSV hold records; a file with an extension of text or source code is one document. All
    /// but Parquet may be compressed: `.gz`, `.zst`. DDK refuses other files. It skips hidden files and the description
    /// of a data set unless they are named.
    pub files: Vec<String>,
    /// Files of validation documents. If there are none, documents are set aside by a hash of their content.
    pub validation_files: Vec<String>,
    /// The format of all files, regardless of their names. `None`: each file's extension decides.
    pub format: Option<FileFormat>,
    /// Template for the text of a record.
    pub text: Template,
    /// Template for the prompt: the part of a record that comes before the text and need not be learned.
    pub prompt: Option<Template>,
    /// How the records are conversations; `text` and `prompt` then have no effect.
    pub chat: Option<Chat>,
    /// Where the tokens come from, if others made them. The templates are then unused.
    pub tokens: Option<TokenSource>,
    /// Field and value: only records whose field has this value belong to the domain.
    pub only: Option<(String, String)>,
    /// Limits on the text that DDK uses.
    pub limits: Limits,
}

/// Where a domain's tokens come from, if others made them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSource {
    /// The field of a record that holds the list of ids; `None` for Megatron's indexed datasets.
    pub field: Option<String>,
    /// The folder of the tokenizer that made the ids. Its `tokenizer.json` must equal the corpus's.
    pub tokenizer: PathBuf,
    /// Number of ids of the corpus's tokenizer. A record with another id is unusable.
    pub vocabulary: usize,
}

/// Limits on the text that DDK uses of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Maximum bytes of text to train on.
    pub bytes: Option<u64>,
    /// Maximum number of documents to train on.
    pub documents: Option<u64>,
    /// Maximum number of tokens to train on: the first ones in file order.
    pub tokens: Option<u64>,
    /// Minimum bytes of a document; DDK leaves out shorter ones.
    pub shortest: u64,
    /// Maximum bytes of a document; DDK quarantines longer ones.
    pub longest: u64,
}

impl Limits {
    /// Whether the seed chooses documents. (A limit on tokens takes the first ones instead.)
    pub(crate) fn chooses(&self) -> bool {
        self.bytes.is_some() || self.documents.is_some()
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: None,
            documents: None,
            tokens: None,
            shortest: 1,
            longest: 64 << 20,
        }
    }
}

/// A file as it was when it was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceFile {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    /// Nanoseconds since 1970.
    pub(crate) modified: u64,
    pub(crate) format: Format,
}

/// What DDK uses a document for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Train,
    Validation,
    Nothing,
}

/// Maximum number of refused files that an error names.
const LISTED: usize = 5;

impl DomainSource {
    /// Returns the files that the patterns match, sorted by path, without duplicates.
    pub(crate) fn expand(&self, patterns: &[String]) -> Result<Vec<SourceFile>, CorpusError> {
        let (mut paths, mut left_out) = (Vec::new(), BTreeSet::new());
        for pattern in patterns {
            match pattern.strip_prefix('!') {
                Some(pattern) => {
                    let found = self.matching(pattern)?;
                    left_out.extend(found.iter().map(|path| whole(path)));
                }
                None => paths.extend(self.matching(pattern)?),
            }
        }
        paths.retain(|path| left_out.is_empty() || !left_out.contains(&whole(path)));
        if self.format == Some(FileFormat::Megatron) {
            paths = paths.iter().flat_map(|path| pair(path)).collect();
        }
        paths.sort();
        paths.dedup();
        self.with_formats(paths)
    }

    /// Returns the files that a pattern matches.
    fn matching(&self, pattern: &str) -> Result<Vec<PathBuf>, CorpusError> {
        let (path, mut found) = (Path::new(pattern), Vec::new());
        if path.exists() {
            walk(path, &mut found)?;
        } else {
            // Skip hidden files, as `walk` does.
            let options = glob::MatchOptions {
                require_literal_leading_dot: true,
                ..glob::MatchOptions::new()
            };
            let matches = glob::glob_with(pattern, options);
            let matches = matches.map_err(|error| CorpusError::BadPattern {
                domain: self.name.clone(),
                pattern: pattern.to_owned(),
                reason: error.to_string(),
            })?;
            for path in matches {
                let path =
                    path.map_err(|error| FileError::at("read", error.path())(error.into()))?;
                walk(&path, &mut found)?;
            }
        }
        if found.is_empty() {
            let is_relative = path.is_relative();
            return Err(CorpusError::NoFiles {
                domain: self.name.clone(),
                pattern: pattern.to_owned(),
                folder: is_relative.then(|| env::current_dir().ok()).flatten(),
            });
        }
        Ok(found)
    }

    /// Whether its documents may have tokens that need not be predicted.
    pub(crate) fn is_masked(&self) -> bool {
        self.prompt.is_some() || self.chat.is_some() || self.tokens_field().is_some()
    }

    /// The field that holds token ids.
    pub(crate) fn tokens_field(&self) -> Option<&String> {
        self.tokens.as_ref()?.field.as_ref()
    }

    /// Minimum bytes of a line that holds a usable record of JSON, including the line break.
    pub(crate) fn shortest_line(&self) -> u64 {
        match self.tokens_field() {
            Some(field) => Template::field(field).shortest_line(),
            None => self.text.shortest_line(),
        }
    }

    /// Pairs each file with its format. Checks all files before any is read, so that one error covers all refused
    /// files.
    fn with_formats(&self, paths: Vec<PathBuf>) -> Result<Vec<SourceFile>, CorpusError> {
        let (mut files, mut refused) = (Vec::with_capacity(paths.len()), Vec::new());
        for path in paths {
            match decide(&path, self.format) {
                Ok(format) => files.push(SourceFile::of(path, format)?),
                Err(reason) => refused.push((path, reason)),
            }
        }
        if refused.is_empty() {
            return Ok(files);
        }
        let count = refused.len();
        refused.truncate(LISTED);
        Err(CorpusError::UnknownFormat {
            domain: self.name.clone(),
            count,
            files: refused,
        })
    }
}

impl SourceFile {
    pub(crate) fn of(path: PathBuf, format: Format) -> Result<Self, CorpusError> {
        let metadata = fs::metadata(&path).map_err(CorpusError::io("read", &path))?;
        let modified = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |elapsed| elapsed.as_nanos() as u64);
        Ok(Self {
            bytes: metadata.len(),
            modified,
            path,
            format,
        })
    }
}

/// A path that does not depend on how a pattern spells it.
fn whole(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Files that describe a data set of Hugging Face and hold no records.
const DESCRIPTIONS: [&str; 3] = [
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
];

/// Whether a file in a folder describes a data set.
pub(crate) fn is_description(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // `datasets` writes the state of a data set beside its description.
    let is_state = name == "state.json" && path.with_file_name(DESCRIPTIONS[0]).exists();
    is_state || DESCRIPTIONS.contains(&&*name)
}

/// Collects a file, or all files below a folder except hidden ones and descriptions of data sets.
fn walk(path: &Path, found: &mut Vec<PathBuf>) -> Result<(), CorpusError> {
    if path.is_file() {
        found.push(path.to_owned());
        return Ok(());
    }
    let failed = || CorpusError::io("read", path);
    for entry in fs::read_dir(path).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with('.') && !is_description(&path) {
            walk(&path, found)?;
        }
    }
    Ok(())
}
