//! One process prepares in a folder at a time.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use crate::{CorpusError, Progress};

/// Keeps other processes from preparing in the same folder until it is dropped; it goes with the process.
pub(crate) fn lock(folder: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File, CorpusError> {
    let path = folder.join(".lock");
    let failed = || CorpusError::io("lock", &path);
    // Another user's need not be writable.
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(_) => File::create(&path).map_err(failed())?,
    };
    // Where a file system has no locks, there is nothing to wait for.
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        progress(Progress {
            waiting: true,
            ..Progress::default()
        });
        file.lock().map_err(failed())?;
    }
    Ok(file)
}
