//! Lets only one process at a time prepare in a folder.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::{CorpusError, Progress};

/// Locks a folder against other preparing processes until the returned file is dropped or the process ends.
pub(crate) fn lock(folder: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File, CorpusError> {
    let path = folder.join(".lock");
    let failed = || CorpusError::io("lock", &path);
    // Another user's lock file may not be writable.
    let file = File::open(&path).or_else(|_| File::create(&path));
    let file = file.map_err(failed())?;
    // If the file system has no locks, there is nothing to wait for.
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        progress(Progress {
            waiting: true,
            ..Progress::default()
        });
        file.lock().map_err(failed())?;
    }
    Ok(file)
}
