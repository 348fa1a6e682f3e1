//! Sets checkpoints aside, so that a run no longer resumes from them.

use std::path::PathBuf;

use super::{CheckpointStore, disk::Disk, names};
use crate::{RunFileError, read};

impl CheckpointStore {
    /// The folders of set-aside checkpoints, the earliest written first.
    pub(super) fn set_aside(&self) -> Result<Vec<PathBuf>, RunFileError> {
        let mut found = Vec::new();
        for name in read::names(&self.folder)? {
            if let Some(number) = names::set_aside(&name) {
                let path = self.folder.join(name);
                let written = path.metadata().and_then(|metadata| metadata.modified());
                let written = written.map_err(RunFileError::io("read", &path))?;
                found.push((written, number, path));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(.., path)| path).collect())
    }

    /// Sets aside the checkpoints after `step`, so that a run resumes from there. Renames them and deletes nothing.
    ///
    /// # Errors
    /// If the folder of checkpoints cannot be read or synced, or if a checkpoint cannot be renamed.
    pub fn set_aside_after(&self, step: u64) -> Result<Vec<u64>, RunFileError> {
        let steps = self.steps()?.into_iter();
        let newer: Vec<u64> = steps.filter(|other| *other > step).collect();
        let disk = Disk::default();
        for newer in &newer {
            // Keep any checkpoint of this step that was set aside before.
            let aside = (1..)
                .map(|number| self.folder.join(names::of_set_aside(*newer, number)))
                .find(|aside| !aside.exists());
            if let Some(aside) = aside {
                disk.rename(&self.path(*newer), &aside)?;
            }
        }
        if !newer.is_empty() {
            disk.sync(&self.folder)?;
        }
        Ok(newer)
    }
}
