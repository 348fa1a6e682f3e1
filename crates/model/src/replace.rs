//! Replaces a model folder with a new one, and refuses to replace anything else.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use ddk_files::Swap;
use serde::{Deserialize, Serialize};

use crate::{ModelError, export::TOKENIZER_FILES, weights::INDEX};

/// Lists the files that this program wrote into a folder. Any other file there is the user's.
pub(crate) const MARKER: &str = "ddk_model.json";

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    /// The program's version.
    written_by: String,
    /// Size of each file in bytes.
    files: BTreeMap<String, u64>,
}

/// Returns the marker's text for a folder whose files are all written.
pub(crate) fn marker(folder: &Path) -> Result<String, ModelError> {
    let mut files = BTreeMap::new();
    for (name, path) in entries(folder)? {
        let metadata = path.metadata().map_err(ModelError::io("read", &path))?;
        files.insert(name, metadata.len());
    }
    let written_by = format!("ddk {}", env!("CARGO_PKG_VERSION"));
    let marker = Marker { written_by, files };
    serde_json::to_string_pretty(&marker)
        .map_err(std::io::Error::from)
        .map_err(ModelError::io("write", &folder.join(MARKER)))
}

/// Checks whether a model may be written to `folder`: the folder does not exist, is empty, or holds an unchanged
/// model that this program wrote. `record` names a file that only this program puts beside its models. It
/// identifies models of earlier versions, which have no marker.
///
/// # Errors
/// If the folder holds something that would be lost. The error names it.
pub fn may_replace(folder: &Path, record: Option<&str>) -> Result<(), ModelError> {
    if fs::symlink_metadata(folder).is_err() {
        return Ok(());
    }
    let refused = |found: &str| {
        Err(ModelError::NotReplaced {
            folder: folder.to_owned(),
            found: found.to_owned(),
        })
    };
    if !folder.is_dir() {
        return refused("something that is not a folder");
    }
    let entries = entries(folder)?;
    let Some((first, _)) = entries.first() else {
        return Ok(());
    };
    let marker = fs::read_to_string(folder.join(MARKER)).ok();
    let marker = marker.and_then(|text| serde_json::from_str::<Marker>(&text).ok());
    let has_record = record.is_some_and(|record| folder.join(record).is_file());
    let is_ours = |name: &str, path: &Path| match (&marker, name) {
        (_, MARKER) => true,
        (Some(marker), _) => {
            let metadata = fs::symlink_metadata(path);
            let bytes = metadata.ok().filter(fs::Metadata::is_file);
            bytes.map(|file| file.len()) == marker.files.get(name).copied()
        }
        (None, _) => has_record && (is_a_models(name) || Some(name) == record),
    };
    if marker.is_none() && !has_record {
        return refused(&format!("`{first}`"));
    }
    match entries.iter().find(|(name, path)| !is_ours(name, path)) {
        Some((name, _)) => refused(&format!("`{name}`")),
        None => Ok(()),
    }
}

/// Whether a file of a model can have this name.
fn is_a_models(name: &str) -> bool {
    let is_shard = name.starts_with("model-") && name.ends_with(".safetensors");
    let fixed = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        INDEX,
    ];
    is_shard || fixed.contains(&name) || TOKENIZER_FILES.contains(&name)
}

/// Names and paths of a folder's entries, sorted by name.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, ModelError> {
    let failed = || ModelError::io("read", folder);
    let mut entries = fs::read_dir(folder)
        .map_err(failed())?
        .map(|entry| {
            let entry = entry.map_err(failed())?;
            let name = entry.file_name().to_string_lossy().into_owned();
            Ok((name, entry.path()))
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    entries.sort();
    Ok(entries)
}

/// Returns where to write a model, after cleaning up what an interrupted export left behind.
pub(crate) fn place(folder: &Path) -> Result<Swap, ModelError> {
    // For a symlink, replace the folder that it points to.
    let folder = if folder.is_symlink() {
        fs::canonicalize(folder).map_err(ModelError::io("read", folder))?
    } else {
        folder.to_owned()
    };
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let beside = |suffix: &str| folder.with_file_name(format!(".{name}.ddk-{suffix}"));
    let place = Swap {
        temporary: beside("new"),
        old: beside("old"),
        folder,
    };
    place.recover()?;
    ddk_files::remove(&place.temporary)?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(folder: &Path, text: &str) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), text).unwrap();
        fs::write(folder.join(MARKER), marker(folder).unwrap()).unwrap();
    }

    fn text(folder: &Path) -> String {
        fs::read_to_string(folder.join("config.json")).unwrap()
    }

    #[test]
    fn only_a_model_as_it_was_written_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("model");
        let found = |record| {
            let refused = may_replace(&folder, record);
            refused.err().map(|error| error.to_string())
        };
        assert_eq!(found(None), None, "not there");
        fs::create_dir(&folder).unwrap();
        assert_eq!(found(None), None, "empty");
        model(&folder, "{}");
        assert_eq!(found(None), None, "as it was written");
        // A user's file, a changed file, a symlink, and a folder in place of a file.
        fs::write(folder.join("notes.md"), "mine").unwrap();
        assert!(found(None).unwrap().contains("`notes.md`"));
        fs::remove_file(folder.join("notes.md")).unwrap();
        fs::write(folder.join("config.json"), "{\"mine\":1}").unwrap();
        assert!(found(None).unwrap().contains("`config.json`"));
        fs::remove_file(folder.join("config.json")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", folder.join("config.json")).unwrap();
        assert!(found(None).unwrap().contains("`config.json`"));
        // A model that another program wrote.
        fs::remove_file(folder.join("config.json")).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        fs::remove_file(folder.join(MARKER)).unwrap();
        assert!(found(None).unwrap().contains("`config.json`"));
        // A model of an earlier version, with the record that only this program writes.
        fs::write(folder.join("record.json"), "{}").unwrap();
        assert_eq!(found(Some("record.json")), None);
        fs::write(folder.join("notes.md"), "mine").unwrap();
        assert!(found(Some("record.json")).unwrap().contains("`notes.md`"));
        fs::write(scratch.path().join("file"), "").unwrap();
        may_replace(&scratch.path().join("file"), None).unwrap_err();
    }

    #[test]
    fn a_model_is_replaced_with_an_exchange_and_without_one() {
        for exchange in [true, false] {
            let scratch = tempfile::tempdir().unwrap();
            let folder = scratch.path().join("model");
            for version in ["1", "2"] {
                let place = place(&folder).unwrap();
                model(&place.temporary, version);
                place.publish(exchange).unwrap();
                assert_eq!(text(&folder), version);
                assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
            }
        }
    }

    /// What a kill leaves behind: before or after the exchange, between the two renames, or after both.
    #[test]
    fn a_kill_at_any_call_leaves_a_model_that_is_found_again() {
        type Folders = &'static [(&'static str, &'static str)];
        let left: [(&str, Folders, &str); 4] = [
            (
                "before",
                &[("model", "old"), (".model.ddk-new", "new")],
                "old",
            ),
            (
                "exchanged",
                &[("model", "new"), (".model.ddk-new", "old")],
                "new",
            ),
            (
                "between",
                &[(".model.ddk-old", "old"), (".model.ddk-new", "new")],
                "old",
            ),
            (
                "renamed",
                &[("model", "new"), (".model.ddk-old", "old")],
                "new",
            ),
        ];
        for (what, folders, expected) in left {
            let scratch = tempfile::tempdir().unwrap();
            for (name, version) in folders {
                model(&scratch.path().join(name), version);
            }
            let folder = scratch.path().join("model");
            place(&folder).unwrap();
            assert_eq!(text(&folder), expected, "{what}");
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1, "{what}");
        }
    }

    #[test]
    fn of_a_link_the_folder_behind_it_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let (folder, link) = (scratch.path().join("model"), scratch.path().join("link"));
        model(&folder, "old");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let place = place(&link).unwrap();
        model(&place.temporary, "new");
        place.publish(true).unwrap();
        assert!(link.is_symlink());
        assert_eq!(text(&folder), "new");
    }
}
