//! A folder takes the place of an older one.

use std::path::PathBuf;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{FileError, parent, remove, rename, step, sync_folder};

/// A folder to be written, and what it is called on the way. All three names are in one folder.
#[derive(Debug)]
pub struct Swap {
    /// The folder's own name.
    pub folder: PathBuf,
    /// Where the new folder is written; after an exchange, the old one until it is removed.
    pub temporary: PathBuf,
    /// The old folder, while it has no successor in its place.
    pub old: PathBuf,
}

impl Swap {
    /// Cleans up after an interrupted [`Self::publish`]: an old folder whose successor never came gets its name back.
    /// What is in the temporary folder stays.
    ///
    /// # Errors
    /// A folder cannot be renamed or removed.
    pub fn recover(&self) -> Result<(), FileError> {
        if self.old.exists() && !self.folder.exists() {
            return rename(&self.old, &self.folder);
        }
        remove(&self.old)
    }

    /// Puts the temporary folder, whose files are durable, into its place. At each instant the old or the new folder
    /// is there, whole. `exchange`: under its own name, if the system can exchange two folders.
    ///
    /// # Errors
    /// A folder cannot be renamed, synced or removed.
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
                // Where this fails too, `recover` puts it back.
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
