//! File operations that survive a crash: what is renamed into its place is durable before.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use crate::CorpusError;

/// Makes what was written to a file durable.
pub(crate) fn sync(file: &File, path: &Path) -> Result<(), CorpusError> {
    step("sync", path);
    file.sync_all().map_err(CorpusError::io("write", path))
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), CorpusError> {
    step("sync folder", path);
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(CorpusError::io("write", path))
}

/// Writes a file whole or not at all: beside its place, made durable, renamed.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> Result<(), CorpusError> {
    let partial = path.with_extension("partial");
    step("write", &partial);
    let mut file = File::create(&partial).map_err(CorpusError::io("write", &partial))?;
    file.write_all(contents)
        .map_err(CorpusError::io("write", &partial))?;
    sync(&file, &partial)?;
    rename(&partial, path)
}

/// Renames a file or folder over what may be there.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), CorpusError> {
    step("rename", to);
    fs::rename(from, to).map_err(CorpusError::io("write", to))
}

/// Creates a folder and those above it.
pub(crate) fn create_folder(path: &Path) -> Result<(), CorpusError> {
    step("create", path);
    fs::create_dir_all(path).map_err(CorpusError::io("create", path))
}

/// Removes a folder if it is there.
pub(crate) fn remove_folder(path: &Path) -> Result<(), CorpusError> {
    if !path.exists() {
        return Ok(());
    }
    step("remove", path);
    fs::remove_dir_all(path).map_err(CorpusError::io("remove", path))
}

/// Removes a file if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<(), CorpusError> {
    if !path.exists() {
        return Ok(());
    }
    step("remove", path);
    fs::remove_file(path).map_err(CorpusError::io("remove", path))
}

/// Every operation passes here first: the tests end the process at each of them in turn, and look at their order.
#[cfg(not(test))]
pub(crate) fn step(_operation: &'static str, _path: &Path) {}

#[cfg(test)]
pub(crate) use crate::crash_tests::step;
