//! Saves checkpoints atomically and verifies them before it loads them.

mod aside;
mod disk;
mod names;
mod retention;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use self::disk::{Disk, TEMPORARY};
pub use self::{
    disk::bytes_written,
    retention::{Measured, Retention},
};
use crate::{
    RunFileError,
    manifest::{FORMAT, MANIFEST, Manifest, read_json},
    read,
};

/// The checkpoint file that holds the training loop's state (mixture, quotas, cursors, totals).
const STATE: &str = "state.json";

/// Writes the contents of a file.
type FileWriter = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A checkpoint file: its name, and the function that writes it, which is called on the writer's thread.
pub struct SnapshotFile {
    /// The name within the checkpoint's folder.
    pub name: String,
    /// Writes the contents.
    pub write: FileWriter,
}

impl SnapshotFile {
    /// Creates a file whose contents `write` writes.
    pub fn new(
        name: impl Into<String>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            write: Box::new(write),
        }
    }
}

/// The checkpoints of a run, one folder per step (`step-00001000`).
///
/// A save writes to a hidden temporary folder, fsyncs each file, and writes the manifest with sizes and checksums
/// last. Then it renames the folder. If the step already has a checkpoint, the save first renames the old one aside,
/// and removes it last. A save that is interrupted at any point leaves the earlier checkpoints whole, and either the
/// old or the new checkpoint of its own step.
#[derive(Default)]
pub struct CheckpointStore {
    folder: PathBuf,
    /// Which checkpoints the next save keeps.
    pub retention: Retention,
    /// Evaluations so far. At the next save, they determine which checkpoint is the best to keep.
    pub measured: Vec<Measured>,
    /// Called before each system call of a save.
    pub hook: Option<SaveHook>,
}

/// Called with the step before each system call of a save that changes the disk. The call fails with the hook's error.
/// For fault injection, the hook may also kill the process.
pub type SaveHook = Arc<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// A checkpoint, and whether it verifies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of its files, or why it does not verify.
    pub status: Result<u64, String>,
}

/// A checkpoint that verified.
#[derive(Debug)]
pub struct Opened<T> {
    /// Its step.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// The training loop's state.
    pub state: T,
    /// Newer checkpoints that were skipped, and why.
    pub skipped: Vec<Entry>,
}

/// The result of a save.
#[derive(Debug)]
pub struct SaveReport {
    /// Bytes of all files.
    pub bytes: u64,
    /// Why old checkpoints could not be removed. The new checkpoint is complete regardless.
    pub not_removed: Option<RunFileError>,
}

impl CheckpointStore {
    /// Opens or creates the folder of checkpoints and cleans up after an interrupted save. Removes partially written
    /// and partially removed folders, and renames an old checkpoint back if its replacement is missing.
    ///
    /// # Errors
    /// If the folder cannot be created or read, or if a leftover cannot be removed or renamed.
    pub fn open(folder: &Path, retention: Retention) -> Result<Self, RunFileError> {
        fs::create_dir_all(folder).map_err(RunFileError::io("create", folder))?;
        let store = Self {
            retention,
            ..Self::look(folder)
        };
        let disk = Disk::default();
        for name in read::names(folder)? {
            // Earlier versions kept the name of the newest checkpoint in `latest`.
            if name.ends_with(TEMPORARY) || name == "latest" {
                disk.remove(&folder.join(name))?;
            } else if let Some(step) = names::replaced_step(&name) {
                store.end_replacement(&disk, step)?;
            }
        }
        Ok(store)
    }

    /// Opens the checkpoints of a folder read-only, without cleaning up.
    pub fn look(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            ..Self::default()
        }
    }

    /// Saves a checkpoint. `before_manifest` makes durable what the state refers to (the journal's lines).
    ///
    /// If anything fails, it removes what was written and leaves earlier checkpoints untouched. A failure after the
    /// checkpoint is in place does not fail the save; the report names it.
    ///
    /// # Errors
    /// If a file cannot be written, if `before_manifest` fails, or if the checkpoint cannot be renamed into place.
    pub fn save<T: Serialize>(
        &self,
        step: u64,
        state: &T,
        files: Vec<SnapshotFile>,
        before_manifest: impl FnOnce() -> Result<(), RunFileError>,
    ) -> Result<SaveReport, RunFileError> {
        let hook = self.hook.clone();
        let disk = Disk { hook, step };
        let temporary = self
            .folder
            .join(format!(".{}{TEMPORARY}", names::of_step(step)));
        let written = self
            .write(&disk, &temporary, step, state, files, before_manifest)
            .and_then(|bytes| self.put_in_place(&disk, &temporary, step).map(|()| bytes));
        // There may be nothing to remove yet.
        let bytes = written.inspect_err(|_| drop(disk.remove(&temporary)))?;
        let removed = self
            .end_replacement(&disk, step)
            .and(self.retain(&disk, step));
        Ok(SaveReport {
            bytes,
            not_removed: removed.err(),
        })
    }

    /// Writes all files of a checkpoint into `folder` and returns their total size in bytes.
    fn write<T: Serialize>(
        &self,
        disk: &Disk,
        folder: &Path,
        step: u64,
        state: &T,
        files: Vec<SnapshotFile>,
        before_manifest: impl FnOnce() -> Result<(), RunFileError>,
    ) -> Result<u64, RunFileError> {
        if folder.exists() {
            disk.remove(folder)?;
        }
        disk.create_folder(folder)?;
        let mut entries = BTreeMap::new();
        for SnapshotFile { name, write } in files {
            let entry = disk.write(&folder.join(&name), write)?;
            entries.insert(name, entry);
        }
        let entry = disk.write(&folder.join(STATE), pretty(state))?;
        entries.insert(STATE.to_owned(), entry);
        disk.call()
            .map_err(RunFileError::io("sync", &self.folder))?;
        before_manifest()?;
        let manifest = Manifest {
            format: FORMAT,
            step,
            written_by: format!("ddk {}", env!("CARGO_PKG_VERSION")),
            files: entries,
        };
        disk.write(&folder.join(MANIFEST), pretty(&manifest))?;
        disk.sync(folder)?;
        Ok(manifest.bytes())
    }

    /// Renames a fully written checkpoint to its final name. An old checkpoint of that name stays beside it until the
    /// new one is durable.
    fn put_in_place(&self, disk: &Disk, temporary: &Path, step: u64) -> Result<(), RunFileError> {
        let path = self.folder.join(names::of_step(step));
        let replaced = self.folder.join(names::of_replaced(step));
        // A failed save of this step may have left one.
        self.end_replacement(disk, step)?;
        if path.exists() {
            disk.rename(&path, &replaced)?;
        }
        if let Err(error) = disk.rename(temporary, &path) {
            // If this fails too, the old checkpoint is still found under its other name.
            let _ = self.end_replacement(disk, step);
            return Err(error);
        }
        disk.sync(&self.folder)
    }

    /// Ends the replacement of a step's checkpoint. Removes the old one if the new one is in place, and otherwise
    /// renames the old one back.
    fn end_replacement(&self, disk: &Disk, step: u64) -> Result<(), RunFileError> {
        let path = self.folder.join(names::of_step(step));
        let replaced = self.folder.join(names::of_replaced(step));
        if !replaced.exists() {
            return Ok(());
        }
        if path.exists() {
            return disk.retire(&replaced);
        }
        disk.rename(&replaced, &path)?;
        disk.sync(&self.folder)
    }

    /// Lists all checkpoints in the order of their steps, and verifies each.
    ///
    /// # Errors
    /// If the folder of checkpoints cannot be read. A damaged checkpoint is not an error; its entry says so.
    pub fn list(&self) -> Result<Vec<Entry>, RunFileError> {
        let steps = self.steps()?.into_iter();
        Ok(steps.map(|step| self.entry(step)).collect())
    }

    /// Verifies the checkpoint of a step. If there is none, the entry says so.
    pub fn entry(&self, step: u64) -> Entry {
        let path = self.path(step);
        let status = Manifest::verify(&path).map(|manifest| manifest.bytes());
        Entry { step, path, status }
    }

    /// Reads the loop's state from the checkpoint of a step, whether or not the other files verify.
    ///
    /// # Errors
    /// If the state cannot be read. The error is the reason.
    pub fn state<T: DeserializeOwned>(&self, step: u64) -> Result<T, String> {
        read_json(&self.path(step), STATE)
    }

    /// Returns the newest checkpoint that verifies and whose state can be read, and the newer ones that were skipped.
    ///
    /// Returns `None` if there are no checkpoints.
    ///
    /// # Errors
    /// If the folder cannot be read, or if there are checkpoints but none verifies; the error says why. A run must
    /// never restart at step 0 without being told to.
    pub fn newest<T: DeserializeOwned>(&self) -> Result<Option<Opened<T>>, RunFileError> {
        let steps = self.steps()?;
        if steps.is_empty() {
            return Ok(None);
        }
        let mut skipped = Vec::new();
        for step in steps.into_iter().rev() {
            let mut entry = self.entry(step);
            match entry.status.and_then(|_| self.state(step)) {
                Ok(state) => {
                    return Ok(Some(Opened {
                        step,
                        path: entry.path,
                        state,
                        skipped,
                    }));
                }
                Err(reason) => entry.status = Err(reason),
            }
            skipped.push(entry);
        }
        let reasons = skipped.into_iter().filter_map(|entry| {
            let reason = entry.status.err()?;
            Some(format!("{}: {reason}", names::of_step(entry.step)))
        });
        Err(RunFileError::NoneVerifies {
            folder: self.folder.clone(),
            reasons: reasons.collect::<Vec<_>>().join("; "),
        })
    }

    /// Returns the steps of all checkpoints, in order, without reading the checkpoints.
    ///
    /// # Errors
    /// If the folder of checkpoints cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, RunFileError> {
        let names = read::names(&self.folder)?;
        let step = |name: &String| names::step(name).or(names::replaced_step(name));
        let steps: BTreeSet<u64> = names.iter().filter_map(step).collect();
        Ok(steps.into_iter().collect())
    }

    /// The folder of a step's checkpoint. While a new checkpoint is replacing it, the folder of the old one.
    fn path(&self, step: u64) -> PathBuf {
        let path = self.folder.join(names::of_step(step));
        let replaced = self.folder.join(names::of_replaced(step));
        if !path.exists() && replaced.exists() {
            replaced
        } else {
            path
        }
    }

    /// Removes the checkpoints that need not be kept. Called only after a save, so the checkpoint of step `saved` is
    /// complete. Neither touches nor counts checkpoints of later steps. If one cannot be removed, still removes the
    /// others.
    fn retain(&self, disk: &Disk, saved: u64) -> Result<(), RunFileError> {
        let mut steps = self.steps()?;
        steps.retain(|step| *step <= saved);
        let surplus = self.retention.surplus(&steps, &self.measured).into_iter();
        let mut surplus: Vec<PathBuf> = surplus.map(|step| self.path(step)).collect();
        let aside = self.set_aside()?;
        let too_many = aside.len().saturating_sub(self.retention.last.max(1));
        surplus.extend(aside.into_iter().take(too_many));
        let removed: Vec<_> = surplus.iter().map(|path| disk.retire(path)).collect();
        removed.into_iter().collect()
    }
}

/// Writes a value as indented JSON.
fn pretty(value: &impl Serialize) -> impl FnOnce(&mut dyn Write) -> io::Result<()> {
    move |out| out.write_all(&serde_json::to_vec_pretty(value)?)
}
