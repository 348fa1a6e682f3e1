//! Checkpoints: whole or absent, verified before they are loaded.

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

/// The file of a checkpoint that holds the loop's state (mixture, quotas, cursors, totals).
const STATE: &str = "state.json";

/// Writes the contents of a file.
type FileWriter = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A file of a checkpoint: a name and what writes it, to be called on the writer's thread.
pub struct SnapshotFile {
    /// The name within the checkpoint's folder.
    pub name: String,
    /// Writes the contents.
    pub write: FileWriter,
}

impl SnapshotFile {
    /// A file that `write` writes.
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

/// The checkpoints of a run, in folders `step-00001000`.
///
/// A save writes a hidden temporary folder, each file fsynced, the manifest with sizes and checksums last,
/// and renames it. A checkpoint of the same step is renamed aside first and removed last. A save that is cut
/// off at any instant leaves the ones before it, and either the old or the new one of its own step.
pub struct CheckpointStore {
    folder: PathBuf,
    retention: Retention,
    /// By which the best is known.
    measured: Vec<Measured>,
    hook: Option<SaveHook>,
}

impl std::fmt::Debug for CheckpointStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "CheckpointStore({})", self.folder.display())
    }
}

/// Called with the step before each of a save's system calls that change something; its error is the call's.
/// For faults on purpose: a process may also be ended in it.
pub type SaveHook = Arc<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// A checkpoint in a list.
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
    /// The loop's state.
    pub state: T,
    /// Newer ones that did not verify, and why.
    pub skipped: Vec<Entry>,
}

/// What a save wrote.
#[derive(Debug)]
pub struct SaveReport {
    /// The step.
    pub step: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// Why checkpoints that should be gone are still there. The one that was saved is whole all the same.
    pub not_removed: Option<RunFileError>,
}

impl CheckpointStore {
    /// Opens or creates the folder of checkpoints and cleans up after an interrupted save. Removes what is half written
    /// or half removed, and restores the name of a checkpoint whose replacement is missing.
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
            // Earlier versions kept the name of the newest in `latest`.
            if name.ends_with(TEMPORARY) || name == "latest" {
                disk.remove(&folder.join(name))?;
            } else if let Some(step) = names::replaced_step(&name) {
                store.end_replacement(&disk, step)?;
            }
        }
        Ok(store)
    }

    /// With a hook before each system call of a save.
    pub fn with_hook(self, hook: SaveHook) -> Self {
        Self {
            hook: Some(hook),
            ..self
        }
    }

    /// Changes how many of the newest stay, from the next save on.
    pub fn keep_last(&mut self, last: usize) {
        self.retention.last = last;
    }

    /// Says what was measured so far, so that the best may stay, from the next save on.
    pub fn measured(&mut self, measured: &[Measured]) {
        self.measured = measured.to_vec();
    }

    /// Looks at the checkpoints of a folder without touching anything.
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
    /// If anything fails, it removes what was written and leaves earlier checkpoints untouched. What fails once the
    /// checkpoint is in its place does not fail the save; the report names it.
    ///
    /// # Errors
    /// If a file cannot be written, if `before_manifest` fails, or if the checkpoint cannot be put in its place.
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

    /// Writes all files of a checkpoint into `folder`; returns their bytes.
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

    /// Renames a checkpoint that is written whole to its name. One that has the name already stays beside it
    /// until the new one is durable.
    fn put_in_place(&self, disk: &Disk, temporary: &Path, step: u64) -> Result<(), RunFileError> {
        let path = self.folder.join(names::of_step(step));
        let replaced = self.folder.join(names::of_replaced(step));
        // From a save of this step that failed.
        self.end_replacement(disk, step)?;
        if path.exists() {
            disk.rename(&path, &replaced)?;
        }
        if let Err(error) = disk.rename(temporary, &path) {
            // Where this fails too, the old one is still found under its other name.
            let _ = self.end_replacement(disk, step);
            return Err(error);
        }
        disk.sync(&self.folder)
    }

    /// Removes the old checkpoint of a step once the new one has its name; gives it its name back where there
    /// is no new one.
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

    /// Lists all checkpoints by step, each verified.
    ///
    /// # Errors
    /// If the folder of checkpoints cannot be read. A damaged checkpoint is not an error; its entry says so.
    pub fn list(&self) -> Result<Vec<Entry>, RunFileError> {
        let steps = self.steps()?.into_iter();
        Ok(steps.map(|step| self.entry(step)).collect())
    }

    /// The checkpoint of a step, verified, whether it is there or not.
    pub fn entry(&self, step: u64) -> Entry {
        let path = self.path(step);
        let status = Manifest::verify(&path).map(|manifest| manifest.bytes());
        Entry { step, path, status }
    }

    /// Reads the loop's state from the checkpoint of a step, whether or not the other files verify.
    ///
    /// # Errors
    /// Why the state cannot be read.
    pub fn state<T: DeserializeOwned>(&self, step: u64) -> Result<T, String> {
        let text = fs::read_to_string(self.path(step).join(STATE));
        let text = text.map_err(|error| format!("{STATE}: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("{STATE}: {error}"))
    }

    /// Returns the newest checkpoint that verifies and whose state can be read, and the newer ones that were skipped.
    ///
    /// `None` if there is no checkpoint at all.
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

    /// Where the checkpoint of a step is: the old one, while a new one is taking its place.
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

    /// Removes what need not stay. Only called after a save, so that of step `saved` has just been written
    /// whole; what else may lie there of later steps is not touched, and does not count. One that cannot be
    /// removed keeps no other from going.
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
        /// Each one, and why.
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
