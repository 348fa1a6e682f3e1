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
pub use self::retention::{Measured, Retention};
use crate::{
    RunFileError,
    manifest::{FORMAT, MANIFEST, Manifest},
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

impl std::fmt::Debug for SnapshotFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "SnapshotFile({})", self.name)
    }
}

/// The checkpoints of a run, one folder per step (`step-00001000`).
///
/// A save writes to a hidden temporary folder, fsyncs each file, and writes the manifest with sizes and checksums
/// last. Then it renames the folder. If the step already has a checkpoint, the save first renames the old one aside,
/// and removes it last. A save that is interrupted at any point leaves the earlier checkpoints whole, and either the
/// old or the new checkpoint of its own step.
pub struct CheckpointStore {
    folder: PathBuf,
    retention: Retention,
    /// Evaluations so far, which determine the best checkpoint.
    measured: Vec<Measured>,
    hook: Option<SaveHook>,
}

impl std::fmt::Debug for CheckpointStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "CheckpointStore({})", self.folder.display())
    }
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
    /// The step.
    pub step: u64,
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
            folder: folder.to_owned(),
            retention,
            measured: Vec::new(),
            hook: None,
        };
        let disk = Disk::unhooked();
        for name in store.names()? {
            // Earlier versions kept the name of the newest checkpoint in `latest`.
            if name.ends_with(TEMPORARY) || name == "latest" {
                disk.remove(&folder.join(name))?;
            } else if let Some(step) = names::replaced_step(&name) {
                store.end_replacement(&disk, step)?;
            }
        }
        Ok(store)
    }

    /// Sets a hook that runs before each system call of a save.
    pub fn with_hook(self, hook: SaveHook) -> Self {
        Self {
            hook: Some(hook),
            ..self
        }
    }

    /// Changes how many of the newest checkpoints to keep, from the next save on.
    pub fn keep_last(&mut self, last: usize) {
        self.retention.last = last;
    }

    /// Sets the evaluations so far. From the next save on, they determine which checkpoint is the best to keep.
    pub fn measured(&mut self, measured: &[Measured]) {
        self.measured = measured.to_vec();
    }

    /// Opens the checkpoints of a folder read-only, without cleaning up.
    pub fn look(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            retention: Retention::last(1),
            measured: Vec::new(),
            hook: None,
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
        let disk = Disk::new(self.hook.clone(), step);
        let temporary = self
            .folder
            .join(format!(".{}{TEMPORARY}", names::of_step(step)));
        let written = self
            .write(&disk, &temporary, step, state, files, before_manifest)
            .and_then(|bytes| self.put_in_place(&disk, &temporary, step).map(|()| bytes));
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                if temporary.exists() {
                    let _ = disk.remove(&temporary);
                }
                return Err(error);
            }
        };
        let removed = self
            .end_replacement(&disk, step)
            .and(self.retain(&disk, step));
        Ok(SaveReport {
            step,
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
        let state = serde_json::to_vec_pretty(state)
            .map_err(io::Error::from)
            .map_err(RunFileError::io("write", &folder.join(STATE)))?;
        let mut entries = BTreeMap::new();
        for file in files
            .into_iter()
            .chain([SnapshotFile::new(STATE, move |out| out.write_all(&state))])
        {
            let entry = disk.write(&folder.join(&file.name), file.write)?;
            entries.insert(file.name, entry);
        }
        disk.call()
            .map_err(RunFileError::io("sync", &self.folder))?;
        before_manifest()?;
        let manifest = Manifest {
            format: FORMAT,
            step,
            written_by: format!("ddk {}", env!("CARGO_PKG_VERSION")),
            files: entries,
        };
        let path = folder.join(MANIFEST);
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(io::Error::from)
            .map_err(RunFileError::io("write", &path))?;
        disk.write(&path, Box::new(move |out| out.write_all(&text)))?;
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
        let text = fs::read_to_string(self.path(step).join(STATE));
        let text = text.map_err(|error| format!("{STATE}: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("{STATE}: {error}"))
    }

    /// Returns the newest checkpoint that verifies and whose state can be read, and the newer ones that were skipped.
    ///
    /// Returns `None` if there are no checkpoints.
    ///
    /// # Errors
    /// If the folder cannot be read, or if there are checkpoints but none verifies; `skipped` says why. A run must
    /// never restart at step 0 without being told to.
    pub fn newest<T: DeserializeOwned>(&self) -> Result<Option<Opened<T>>, NoneVerifies> {
        let steps = self.steps()?;
        if steps.is_empty() {
            return Ok(None);
        }
        let mut skipped = Vec::new();
        for step in steps.into_iter().rev() {
            let path = self.path(step);
            let state = Manifest::verify(&path).and_then(|_| self.state(step));
            match state {
                Ok(state) => {
                    return Ok(Some(Opened {
                        step,
                        path,
                        state,
                        skipped,
                    }));
                }
                Err(reason) => skipped.push(Entry {
                    step,
                    path,
                    status: Err(reason),
                }),
            }
        }
        Err(NoneVerifies::Damaged {
            folder: self.folder.clone(),
            skipped,
        })
    }

    /// Returns the steps of all checkpoints, in order, without reading the checkpoints.
    ///
    /// # Errors
    /// If the folder of checkpoints cannot be read.
    pub fn steps(&self) -> Result<Vec<u64>, RunFileError> {
        let names = self.names()?;
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

    fn names(&self) -> Result<Vec<String>, RunFileError> {
        let failed = || RunFileError::io("read", &self.folder);
        let entries = fs::read_dir(&self.folder).map_err(failed())?;
        let name = |entry: io::Result<fs::DirEntry>| {
            let name = entry.map_err(failed())?.file_name();
            Ok(name.to_string_lossy().into_owned())
        };
        entries.map(name).collect()
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

/// Why no checkpoint could be opened.
#[derive(Debug, thiserror::Error)]
pub enum NoneVerifies {
    /// The folder could not be read.
    #[error(transparent)]
    File(#[from] RunFileError),
    /// There are checkpoints, but each is damaged.
    #[error("every checkpoint in {} is damaged: {}", folder.display(), describe(skipped))]
    Damaged {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Each checkpoint, and why it does not load.
        skipped: Vec<Entry>,
    },
}

fn describe(entries: &[Entry]) -> String {
    let parts: Vec<String> = entries
        .iter()
        .map(|entry| match &entry.status {
            Ok(_) => names::of_step(entry.step),
            Err(reason) => format!("{}: {reason}", names::of_step(entry.step)),
        })
        .collect();
    parts.join("; ")
}
