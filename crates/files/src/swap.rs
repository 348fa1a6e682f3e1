//! Replaces a folder with a new one.

use std::path::PathBuf;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{FileError, parent, remove, rename, step, sync_folder};

/// A folder to write, and its names on the way. All three names are in the same parent folder.
#[derive(Debug)]
pub struct Swap {
    /// The folder's own name.
    pub folder: PathBuf,
    /// Where the new folder is written; after an exchange, the old one until it is removed.
    pub temporary: PathBuf,
    /// Where the old folder is until the new one is in place.
    pub old: PathBuf,
}

impl Swap {
    /// Cleans up after an interrupted [`Self::publish`]: renames the old folder back if the new one never came.
    /// Leaves the temporary folder as it is.
    ///
    /// # Errors
    /// If a folder cannot be renamed or removed.
    pub fn recover(&self) -> Result<(), FileError> {
        if self.old.exists() && !self.folder.exists() {
            return rename(&self.old, &self.folder);
        }
        remove(&self.old)
    }

    /// Moves the temporary folder, whose files are durable, into place. At each instant, the old or the new folder
    /// exists, whole. With `exchange`, that folder always has its final name, if the system can exchange two folders.
    ///
    /// # Errors
    /// If a folder cannot be renamed, synced or removed.
    pub fn publish(&self, exchange: bool) -> Result<(), FileError> {
        sync_folder(&self.temporary)?;
        let exists = self.folder.exists();
        let exchanged = exists && exchange && self.exchange();
        if !exchanged {
            remove(&self.old)?;
            if exists {
                rename(&self.folder, &self.old)?;
            }
            if let Err(error) = rename(&self.temporary, &self.folder) {
                // If this fails too, a later `recover` restores the old folder.
                let _ = self.recover();
                return Err(error);
            }
        }
        sync_folder(parent(&self.folder))?;
        if exchanged {
            remove(&self.temporary)
        } else {
            remove(&self.old)
        }
    }

    fn exchange(&self) -> bool {
        step("exchange", &self.folder);
        let (new, old) = (&self.temporary, &self.folder);
        renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok()
    }
}
