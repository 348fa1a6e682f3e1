//! Performs crash-safe file operations, and reads the tails of growing files.
//!
//! [`replace`] writes a file whole or not at all, [`Swap`] does the same for a folder, and [`Tail`] reads what
//! another process appends. Data is durable before it is renamed into place.
//!
//! ```
//! let path = std::env::temp_dir().join("ddk-files-example.json");
//! ddk_files::write_atomically(&path, b"{}")?;
//! assert_eq!(std::fs::read(&path).unwrap(), b"{}");
//! ddk_files::remove(&path)?;
//! # Ok::<(), ddk_files::FileError>(())
//! ```

mod swap;
mod tail;

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

pub use swap::Swap;
pub use tail::{Found, Tail};

/// A failed system call.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// "read", "write", "create", …
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// The system's error.
    pub source: io::Error,
}

impl FileError {
    /// Returns a function for `map_err` that adds the action and the path.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }
}

type Hook = fn(&'static str, &Path);

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Sets a function that every operation that changes the disk calls first, with its name and path. A process keeps
/// the first hook that it sets. Tests use it to end the process at each operation in turn, and to check their order.
pub fn set_hook(hook: Hook) {
    let _ = HOOK.set(hook);
}

/// Calls the hook. Call this before an operation that this crate does not perform itself.
pub fn step(operation: &'static str, path: &Path) {
    if let Some(hook) = HOOK.get() {
        hook(operation, path);
    }
}

/// The folder that a file or folder is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Writes a new file and makes its contents durable.
///
/// # Errors
/// If the file cannot be written.
pub fn write(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    step("write", path);
    let written = File::create(path).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 18, file);
        contents(&mut out)?;
        out.flush()?;
        step("sync", path);
        out.get_ref().sync_all()
    });
    written.map_err(FileError::at("write", path))
}

/// Replaces a file: writes a temporary file `NAME.tmp` next to it, fsyncs and renames that file, and fsyncs the
/// folder. A crash leaves the old file or the new one, never half of either.
///
/// # Errors
/// If the file cannot be written. The old one is then unchanged.
pub fn replace(
    path: &Path,
    contents: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), FileError> {
    let temporary = path.with_added_extension("tmp");
    let written = write(&temporary, contents).and_then(|()| rename(&temporary, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&temporary);
        return Err(FileError::at("write", path)(error.source));
    }
    sync_folder(parent(path))
}

/// Like [`replace`], with these bytes as contents.
///
/// # Errors
/// If the file cannot be written. The old one is then unchanged.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    replace(path, |out| out.write_all(bytes))
}

/// Makes the names in a folder durable.
///
/// # Errors
/// If the folder cannot be synced.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    step("sync folder", folder);
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(FileError::at("sync", folder))
}

/// Renames a file or folder.
///
/// # Errors
/// If it cannot be renamed.
pub fn rename(from: &Path, to: &Path) -> Result<(), FileError> {
    step("rename", to);
    fs::rename(from, to).map_err(FileError::at("rename", from))
}

/// Creates a folder and its parents.
///
/// # Errors
/// If it cannot be created.
pub fn create_folder(path: &Path) -> Result<(), FileError> {
    step("create", path);
    fs::create_dir_all(path).map_err(FileError::at("create", path))
}

/// Removes a file, or a folder and everything in it, if it exists.
///
/// # Errors
/// If it exists and cannot be removed.
pub fn remove(path: &Path) -> Result<(), FileError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    step("remove", path);
    let removed = if metadata.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    removed.map_err(FileError::at("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary.json");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        let failed = replace(&path, |out| {
            out.write_all(b"three")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomically(&folder.path().join("absent/summary.json"), b"").unwrap_err();
        assert!(
            error.to_string().ends_with("absent/summary.json"),
            "{error}"
        );
    }
}
