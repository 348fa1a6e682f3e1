//! The system calls of a save that change the disk. Each one calls the hook first, so that a test can interrupt a save
//! at any of them.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use super::SaveHook;
use crate::{RunFileError, manifest::FileEntry};

/// Suffix of partially written or partially removed folders. Opening the folder of checkpoints removes them.
pub(super) const TEMPORARY: &str = ".tmp";

/// Bytes of checkpoints that this process has written.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// Returns the number of bytes of checkpoints that this process has written so far, including the current one.
pub fn bytes_written() -> u64 {
    WRITTEN.load(Ordering::Relaxed)
}

/// The disk operations of one step's save; by default without a hook, for use outside a save.
#[derive(Default)]
pub(super) struct Disk {
    pub(super) hook: Option<SaveHook>,
    pub(super) step: u64,
}

impl Disk {
    /// Calls the hook, before a system call.
    pub(super) fn call(&self) -> io::Result<()> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(self.step))
    }

    pub(super) fn create_folder(&self, path: &Path) -> Result<(), RunFileError> {
        let created = self.call().and_then(|()| fs::create_dir(path));
        created.map_err(RunFileError::io("create", path))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), RunFileError> {
        let renamed = self.call().and_then(|()| fs::rename(from, to));
        renamed.map_err(RunFileError::io("rename", from))
    }

    /// Makes the names in a folder durable.
    pub(super) fn sync(&self, folder: &Path) -> Result<(), RunFileError> {
        let synced = self.call().and_then(|()| File::open(folder)?.sync_all());
        synced.map_err(RunFileError::io("sync", folder))
    }

    /// Writes, hashes and fsyncs a new file.
    pub(super) fn write(
        &self,
        path: &Path,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<FileEntry, RunFileError> {
        let written = self.call().and_then(|()| {
            let mut out = BufWriter::new(Hashed {
                disk: self,
                file: File::create(path)?,
                hasher: blake3::Hasher::new(),
            });
            write(&mut out)?;
            out.flush()?;
            self.call()?;
            let Hashed { file, hasher, .. } = out.get_ref();
            file.sync_all()?;
            Ok(FileEntry {
                bytes: hasher.count(),
                blake3: hasher.finalize().to_hex().to_string(),
            })
        });
        written.map_err(RunFileError::io("write", path))
    }

    /// Removes a folder and everything in it. Renames it first, so that no partial folder is ever visible under its
    /// name.
    pub(super) fn retire(&self, path: &Path) -> Result<(), RunFileError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let hidden = format!(".{}.removed{TEMPORARY}", name.trim_start_matches('.'));
        let hidden = path.with_file_name(hidden);
        // Left by an earlier attempt.
        if hidden.exists() {
            self.remove(&hidden)?;
        }
        self.rename(path, &hidden)?;
        self.sync(path.parent().unwrap_or(Path::new(".")))?;
        self.remove(&hidden)
    }

    /// Removes a file, or a folder and everything in it, with one hooked system call per file.
    pub(super) fn remove(&self, path: &Path) -> Result<(), RunFileError> {
        let failed = || RunFileError::io("remove", path);
        let is_folder = fs::symlink_metadata(path).map_err(failed())?.is_dir();
        if is_folder {
            for entry in fs::read_dir(path).map_err(RunFileError::io("read", path))? {
                self.remove(&entry.map_err(RunFileError::io("read", path))?.path())?;
            }
        }
        let removed = self.call().and_then(|()| {
            if is_folder {
                fs::remove_dir(path)
            } else {
                fs::remove_file(path)
            }
        });
        removed.map_err(failed())
    }
}

/// A file that calls the hook before each write, and hashes what is written.
struct Hashed<'a> {
    disk: &'a Disk,
    file: File,
    hasher: blake3::Hasher,
}

impl Write for Hashed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.disk.call()?;
        let written = self.file.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        WRITTEN.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
