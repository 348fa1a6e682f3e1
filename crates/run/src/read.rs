//! Reads the files of a run's folder, for reports and checks.

use std::{fs, io, path::Path};

use serde::de::DeserializeOwned;

use crate::{
    RunFileError,
    records::{EventLine, MixtureLine, Summary},
};

/// Reads the events of `events.jsonl`.
///
/// # Errors
/// If the file cannot be read, or if a line is not an event.
pub fn events(folder: &Path) -> Result<Vec<EventLine>, RunFileError> {
    lines(&folder.join("events.jsonl"))
}

/// Reads `summary.json`.
///
/// # Errors
/// If the file cannot be read or is not a valid summary.
pub fn summary(folder: &Path) -> Result<Summary, RunFileError> {
    record(&folder.join("summary.json"))
}

/// Reads the first mixture of `mixture.jsonl`, with the perplexities at the start. `None` if there is none yet.
///
/// # Errors
/// If the file cannot be read.
pub fn first_mixture(folder: &Path) -> Result<Option<MixtureLine>, RunFileError> {
    Ok(mixtures(folder)?.into_iter().next())
}

/// Reads the mixtures of `mixture.jsonl`; none if there is no file yet.
///
/// # Errors
/// If the file cannot be read.
pub fn mixtures(folder: &Path) -> Result<Vec<MixtureLine>, RunFileError> {
    let path = folder.join("mixture.jsonl");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(&path).map_err(RunFileError::io("read", &path))?;
    // Other lines say what an interval drew. A fork within an interval begins with one.
    let lines = text.lines();
    let mixtures = lines.filter_map(|line| serde_json::from_str(line).ok());
    Ok(mixtures.collect())
}

/// Reads a JSON file that holds one record.
///
/// # Errors
/// If the file cannot be read or is not a valid record.
pub fn record<T: DeserializeOwned>(path: &Path) -> Result<T, RunFileError> {
    let text = fs::read_to_string(path).map_err(RunFileError::io("read", path))?;
    serde_json::from_str(&text).map_err(|error| bad(path, error.line(), &error))
}

/// Reads every line of a file. Leaves out a last line without a line break, which its writer did not finish.
pub(crate) fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RunFileError> {
    let text = fs::read_to_string(path).map_err(RunFileError::io("read", path))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|error| bad(path, index + 1, &error))
        })
        .collect()
}

/// Lists the names in a folder.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, RunFileError> {
    let entries = fs::read_dir(folder).map_err(RunFileError::io("read", folder))?;
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let names: io::Result<Vec<String>> = entries.map(|entry| entry.map(name)).collect();
    names.map_err(RunFileError::io("read", folder))
}

fn bad(path: &Path, line: usize, error: &serde_json::Error) -> RunFileError {
    RunFileError::Record {
        path: path.to_owned(),
        line,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_line_is_left_out_and_a_bad_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let line = r#"{"time":1.5,"step":3,"kind":"saved","message":"step 3"}"#;
        let path = folder.path().join("events.jsonl");
        fs::write(&path, format!("{line}\n{line}\n{{\"time\":2")).unwrap();
        assert_eq!(events(folder.path()).unwrap().len(), 2);
        fs::write(&path, format!("{line}\nnonsense\n")).unwrap();
        let error = events(folder.path()).unwrap_err().to_string();
        assert!(error.contains("events.jsonl:2"), "{error}");
    }
}
