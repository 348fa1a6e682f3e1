//! A checkpoint's manifest: the size and checksum of every file.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The manifest's file name. It is written last, so a folder without it is not a checkpoint.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The version of the checkpoint format. Raise it when the format changes.
pub const FORMAT: u32 = 2;

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) format: u32,
    pub(crate) step: u64,
    /// The version of DDK that wrote the checkpoint.
    pub(crate) written_by: String,
    pub(crate) files: BTreeMap<String, FileEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) bytes: u64,
    pub(crate) blake3: String,
}

impl Manifest {
    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.values().map(|file| file.bytes).sum()
    }

    /// Reads the manifest of `folder` and compares every file with it. The error says what does not match.
    pub(crate) fn verify(folder: &Path) -> Result<Self, String> {
        let manifest: Self = read_json(folder, MANIFEST)?;
        if manifest.format != FORMAT {
            return Err(format!(
                "{MANIFEST}: format {}, but this program reads {FORMAT}",
                manifest.format
            ));
        }
        for (name, expected) in &manifest.files {
            let path = folder.join(name);
            let failed = |error: io::Error| format!("{name}: {error}");
            let bytes = path.metadata().map_err(failed)?.len();
            if bytes != expected.bytes {
                let expected = expected.bytes;
                return Err(format!("{name} has {bytes} bytes, expected {expected}"));
            }
            if hash_file(&path).map_err(failed)? != expected.blake3 {
                return Err(format!("{name} does not match its checksum"));
            }
        }
        Ok(manifest)
    }
}

/// Reads a JSON file of a checkpoint. The error names the file.
pub(crate) fn read_json<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<T, String> {
    let text = fs::read_to_string(folder.join(name)).map_err(|error| format!("{name}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))
}

fn hash_file(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(fs::File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}
