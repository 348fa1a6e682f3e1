//! The files of a domain.

use std::{
    fs,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use serde::{Deserialize, Serialize};

use crate::CorpusError;

/// Where a domain's text comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainSource {
    /// The domain's name.
    pub name: String,
    /// Files, folders (walked) or globs. `.jsonl` files hold a record a line; any other file is one document.
    pub files: Vec<String>,
    /// The field of a record that holds its text; a dot goes into an object.
    pub text_field: String,
    /// Only records whose field has this value are of the domain: field and value.
    pub only: Option<(String, String)>,
    /// Bytes of text to train on at the most.
    pub max_bytes: Option<u64>,
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
    /// The files that the patterns match, sorted by path, each once.
    pub(crate) fn expand(&self) -> Result<Vec<SourceFile>, CorpusError> {
        let mut paths = Vec::new();
        for pattern in &self.files {
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

    pub(crate) fn is_jsonl(&self) -> bool {
        self.path
            .extension()
            .is_some_and(|extension| extension == "jsonl")
    }
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
