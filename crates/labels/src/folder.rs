//! Creates, lists and removes the folders of label sets.
//!
//! Two kernel locks, which the kernel releases however a process ends: a shared one on a set's provenance file while
//! the set is open, and one on the cache's `.lock` while a set is created or removed, or a record written.

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
};

use ddk_files::{FileError, create_folder, step, sync_folder, write_atomically};
use rustix::fs::Access;

use crate::{LabelError, Provenance, format::RECORD};

const PROVENANCE: &str = "provenance.json";

/// A label set in a cache's folder.
#[derive(Debug)]
pub struct SetInfo {
    /// Name of its folder.
    pub name: String,
    /// What its labels depend on.
    pub provenance: Provenance,
    /// Number of labels. A sequence that two processes labeled at once counts twice.
    pub labels: u64,
    /// Its size on disk.
    pub bytes: u64,
}

/// The sets in a cache's folder, by name. An absent folder has none.
///
/// # Errors
/// If the folder or a provenance cannot be read.
pub fn sets(dir: &Path) -> Result<Vec<SetInfo>, LabelError> {
    let mut sets = Vec::new();
    for folder in entries(dir)? {
        let Some(provenance) = read_provenance(&folder)? else {
            continue;
        };
        let files = entries(&folder)?;
        let indices = files
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "idx"));
        sets.push(SetInfo {
            name: folder
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            provenance,
            labels: indices
                .map(|path| (size(path) / RECORD as u64).saturating_sub(1))
                .sum(),
            bytes: size(&folder),
        });
    }
    sets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sets)
}

/// Removes the set of this name.
///
/// # Errors
/// If no such set exists, a process has it open, or a file cannot be removed.
pub fn remove(dir: &Path, name: &str) -> Result<(), LabelError> {
    let folder = dir.join(name);
    let path = folder.join(PROVENANCE);
    let mut parts = Path::new(name).components();
    let is_one_name = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    if !is_one_name || !path.exists() {
        return Err(LabelError::NoSet { folder });
    }
    let _alone = lock_cache(dir)?;
    let provenance = File::options().read(true).write(true).open(&path);
    let provenance = provenance.map_err(FileError::at("open", &path))?;
    if let Err(TryLockError::WouldBlock) = provenance.try_lock() {
        return Err(LabelError::InUse { folder });
    }
    // Remove the provenance last, so that a crash leaves a set that can still be removed.
    let others = entries(&folder)?.into_iter().filter(|other| *other != path);
    for path in others.chain([path.clone(), folder.clone()]) {
        ddk_files::remove(&path)?;
    }
    Ok(sync_folder(dir)?)
}

/// Opens a set for writing, and creates it if it is absent. The set is in use until the returned file is dropped.
pub(crate) fn open(dir: &Path, folder: &Path, provenance: &Provenance) -> Result<File, LabelError> {
    let path = folder.join(PROVENANCE);
    let created = create_folder(dir).and_then(|()| {
        let alone = lock_cache(dir)?;
        if !path.exists() {
            create_folder(folder)?;
            sync_folder(dir)?;
            let json = serde_json::to_vec_pretty(provenance).map_err(io::Error::from);
            write_atomically(&path, &json.map_err(FileError::at("write", &path))?)?;
        }
        let file = lock_shared(&path)?;
        drop(alone);
        Ok(file)
    });
    let is_read_only = |kind| {
        matches!(
            kind,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
        )
    };
    match created {
        Err(error) if is_read_only(error.source.kind()) => {
            let folder = folder.to_owned();
            Err(LabelError::ReadOnly { folder })
        }
        Ok(_) if rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).is_err() => {
            let folder = folder.to_owned();
            Err(LabelError::ReadOnly { folder })
        }
        created => {
            let lock = created?;
            check(folder, provenance)?;
            Ok(lock)
        }
    }
}

/// Opens a set for reading, if it exists.
pub(crate) fn find(folder: &Path, provenance: &Provenance) -> Result<Option<File>, LabelError> {
    let path = folder.join(PROVENANCE);
    if !path.exists() {
        return Ok(None);
    }
    let lock = lock_shared(&path)?;
    Ok(check(folder, provenance)?.then_some(lock))
}

/// Returns false if the set has been removed while this process waited for its lock.
fn check(folder: &Path, expected: &Provenance) -> Result<bool, LabelError> {
    let Some(found) = read_provenance(folder)? else {
        return Ok(false);
    };
    let differences = found.differences(expected);
    if differences.is_empty() {
        return Ok(true);
    }
    let folder = folder.to_owned();
    Err(LabelError::OtherProvenance {
        folder,
        differences,
    })
}

fn read_provenance(folder: &Path) -> Result<Option<Provenance>, LabelError> {
    let path = folder.join(PROVENANCE);
    match fs::read(&path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(FileError::at("read", &path)(error).into()),
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(provenance) => Ok(Some(provenance)),
            Err(source) => Err(LabelError::BadProvenance { path, source }),
        },
    }
}

fn lock_shared(path: &Path) -> Result<File, FileError> {
    let file = File::open(path).map_err(FileError::at("open", path))?;
    // If the file system has no locks, `remove` cannot notice this process.
    let _ = file.lock_shared();
    Ok(file)
}

/// Waits until no other process creates or removes a set, or writes a record.
pub(crate) fn lock_cache(dir: &Path) -> Result<File, FileError> {
    let path = dir.join(".lock");
    step("create", &path);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path);
    // Another user's lock file may not be writable.
    let file = file.or_else(|error| File::open(&path).map_err(|_| error));
    let file = file.map_err(FileError::at("open", &path))?;
    let _ = file.lock();
    Ok(file)
}

/// Number of bytes of a file, or of all files below a folder. Files that vanish meanwhile count as empty.
pub(crate) fn size(path: &Path) -> u64 {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => entries(path)
            .unwrap_or_default()
            .iter()
            .map(|path| size(path))
            .sum(),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let listed = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        listed => listed.and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect()),
    };
    listed.map_err(FileError::at("read", folder))
}
