//! The files of a domain.

use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};

use crate::{CorpusError, Template};

/// Where a domain's text comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainSource {
    /// The domain's name.
    pub name: String,
    /// Files, folders (walked) or globs. `.jsonl` files hold a record a line, `.parquet` files a record a row; any other file is
    /// one document. All but Parquet may be compressed: `.gz`, `.zst`.
    pub files: Vec<String>,
    /// Files of validation documents. Where there are none, documents are set aside by a hash of their content.
    pub validation_files: Vec<String>,
    /// The text of a record.
    pub text: Template,
    /// The part of a record that comes before the text, and need not be learnt.
    pub prompt: Option<Template>,
    /// Only records whose field has this value are of the domain: field and value.
    pub only: Option<(String, String)>,
    /// What is taken of it.
    pub limits: Limits,
}

/// What is taken of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of text to train on at the most.
    pub bytes: Option<u64>,
    /// Documents to train on at the most.
    pub documents: Option<u64>,
    /// Tokens to train on at the most: the first ones in the order of the files.
    pub tokens: Option<u64>,
    /// Shorter documents, in bytes, are left out.
    pub shortest: u64,
    /// Longer documents, in bytes, are quarantined.
    pub longest: u64,
}

impl Limits {
    /// Whether documents are chosen from, by the seed. (The first tokens are taken in order.)
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
}

impl DomainSource {
    /// The files to train on, sorted by path, each once.
    pub(crate) fn expand(&self) -> Result<Vec<SourceFile>, CorpusError> {
        self.matches(&self.files)
    }

    /// The files of validation documents.
    pub(crate) fn expand_validation(&self) -> Result<Vec<SourceFile>, CorpusError> {
        self.matches(&self.validation_files)
    }

    fn matches(&self, patterns: &[String]) -> Result<Vec<SourceFile>, CorpusError> {
        let mut paths = Vec::new();
        for pattern in patterns {
            let before = paths.len();
            let path = Path::new(pattern);
            if path.exists() {
                walk(path, &mut paths)?;
            } else {
                let matches = glob::glob(pattern).map_err(|error| CorpusError::BadPattern {
                    domain: self.name.clone(),
                    pattern: pattern.clone(),
                    reason: error.to_string(),
                })?;
                for found in matches {
                    let found = found.map_err(|error| CorpusError::Io {
                        action: "read",
                        path: error.path().to_owned(),
                        source: error.into(),
                    })?;
                    walk(&found, &mut paths)?;
                }
            }
            if paths.len() == before {
                return Err(CorpusError::NoFiles {
                    domain: self.name.clone(),
                    pattern: pattern.clone(),
                });
            }
        }
        paths.sort();
        paths.dedup();
        paths.into_iter().map(SourceFile::of).collect()
    }
}

impl SourceFile {
    fn of(path: PathBuf) -> Result<Self, CorpusError> {
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
        })
    }

    pub(crate) fn format(&self) -> Format {
        let name = self.path.to_string_lossy();
        let (name, compression) = match name.rsplit_once('.') {
            Some((rest, "gz")) => (rest, Compression::Gzip),
            Some((rest, "zst")) => (rest, Compression::Zstd),
            _ => (&*name, Compression::None),
        };
        let records = match name.rsplit_once('.') {
            Some((_, "jsonl")) => Records::Lines,
            Some((_, "parquet")) => Records::Parquet,
            _ => Records::WholeFile,
        };
        Format {
            records,
            compression,
        }
    }
}

/// How records are in a file, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) records: Records,
    pub(crate) compression: Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Records {
    /// JSON Lines.
    Lines,
    Parquet,
    /// The file is one document.
    WholeFile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file itself, or all files below a folder; hidden ones are left out.
fn walk(path: &Path, found: &mut Vec<PathBuf>) -> Result<(), CorpusError> {
    if path.is_file() {
        found.push(path.to_owned());
        return Ok(());
    }
    let failed = || CorpusError::io("read", path);
    for entry in fs::read_dir(path).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            walk(&entry.path(), found)?;
        }
    }
    Ok(())
}
