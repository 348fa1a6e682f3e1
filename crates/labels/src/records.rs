//! Keeps small named values beside the labels: `records/KEY.json`, with a checksum.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ddk_files::{FileError, create_folder, parent, write_atomically};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::LabelError;

#[derive(Serialize, Deserialize)]
struct Record {
    /// BLAKE3 hash of the value as compact JSON.
    checksum: String,
    value: Value,
}

fn checksum(value: &Value) -> String {
    blake3::hash(value.to_string().as_bytes())
        .to_hex()
        .to_string()
}

/// The path of a record.
pub(crate) fn path(folder: &Path, key: &str) -> Result<PathBuf, LabelError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if key.is_empty() || key.starts_with('.') || !key.chars().all(fits) {
        return Err(LabelError::BadKey {
            key: key.to_owned(),
        });
    }
    Ok(folder.join("records").join(format!("{key}.json")))
}

/// Reads a record. `Ok(None)` if it is absent; an error of kind `InvalidData` if it is damaged.
pub(crate) fn read(path: &Path) -> Result<Option<Value>, FileError> {
    let read = fs::read(path).and_then(|bytes| {
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        if checksum(&record.value) != record.checksum {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(record.value)
    });
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).map_err(FileError::at("read", path)),
    }
}

/// Writes a record, whole or not at all.
pub(crate) fn write(path: &Path, value: &Value) -> Result<(), FileError> {
    let (checksum, value) = (checksum(value), value.clone());
    let json = serde_json::to_vec(&Record { checksum, value }).map_err(io::Error::from);
    create_folder(parent(path))?;
    write_atomically(path, &json.map_err(FileError::at("write", path))?)
}
