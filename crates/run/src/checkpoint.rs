//! Checkpoints: whole or absent, verified before they are loaded.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    RunFileError,
    files::{sync_folder, write_atomically},
    manifest::{FORMAT, FileEntry, MANIFEST, Manifest},
};

/// The file of a checkpoint that holds the loop's state (mixture, quotas, cursors, totals).
const STATE: &str = "state.json";

/// Writes the contents of a file.
pub type FileWriter = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// A file of a checkpoint: a name and what writes it, to be called on the writer's thread.
pub struct NamedFile {
    /// The name within the checkpoint's folder.
    pub name: String,
    /// Writes the contents.
    pub write: FileWriter,
}

impl std::fmt::Debug for NamedFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "NamedFile({})", self.name)
    }
}

/// The checkpoints of a run, in folders `step-00001000`.
///
/// A save writes a hidden temporary folder, each file fsynced, the manifest with sizes and checksums last, and renames it;
/// then the file `latest` is replaced by rename. So a save that is cut off at any instant leaves the ones before it.
pub struct CheckpointStore {
    folder: PathBuf,
    retention: Retention,
    hook: Option<SaveHook>,
}

impl std::fmt::Debug for CheckpointStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "CheckpointStore({})", self.folder.display())
    }
}

/// Called with the step before each of a save's system calls that change something; its error is the call's. For faults on
/// purpose: a process may also be ended in it.
pub type SaveHook = Arc<dyn Fn(u64) -> io::Result<()> + Send + Sync>;

/// Which checkpoints stay. The newest, just written whole, always does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// So many of the newest, at least one.
    pub last: usize,
    /// Those of steps that are multiples of this, for ever.
    pub every: Option<u64>,
    /// The one at which the mean ratio to the teacher was the smallest, by the lines of this `mixture.jsonl`; and the last one
    /// that began an interval and is not measured yet, which mixtures that lag are.
    pub best_by: Option<PathBuf>,
}

impl Retention {
    /// Only the newest.
    pub fn last(last: usize) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    /// The steps to remove, of all there are in their order.
    fn surplus(&self, steps: &[u64]) -> Vec<u64> {
        let best = self
            .best_by
            .as_deref()
            .map_or([None; 2], |path| best_steps(path, steps));
        let older = &steps[..steps.len().saturating_sub(self.last.max(1))];
        older
            .iter()
            .copied()
            .filter(|step| self.every.is_none_or(|every| !step.is_multiple_of(every)))
            .filter(|step| !best.contains(&Some(*step)))
            .collect()
    }
}

/// Of `steps` the one whose mean ratio, as it was measured there, is the smallest, and the last one at which an interval began
/// after everything that was measured.
fn best_steps(mixture: &Path, steps: &[u64]) -> [Option<u64>; 2] {
    let folder = mixture.parent().unwrap_or(mixture);
    let Ok((lines, _)) = crate::read::mixtures(folder) else {
        return [None; 2];
    };
    let mean = |line: &crate::records::MixtureLine| {
        line.ratio.values().sum::<f64>() / line.ratio.len().max(1) as f64
    };
    let best = lines
        .iter()
        .filter(|line| steps.contains(&line.evaluated_at_step))
        // What is not finite has no ratio.
        .filter(|line| line.ratio.len() == line.weights.len())
        .min_by(|a, b| mean(a).total_cmp(&mean(b)))
        .map(|line| line.evaluated_at_step);
    let measured = lines.iter().map(|line| line.evaluated_at_step).max();
    let began = lines.iter().map(|line| line.step);
    let unmeasured = began.filter(|step| Some(*step) > measured && steps.contains(step));
    [best, unmeasured.max()]
}

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
    pub passed_over: Vec<Entry>,
}

/// What a save wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveReport {
    /// The step.
    pub step: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl CheckpointStore {
    /// Opens (or makes) the folder of checkpoints and removes what an interrupted save left.
    pub fn open(folder: &Path, retention: Retention) -> Result<Self, RunFileError> {
        fs::create_dir_all(folder).map_err(RunFileError::io("create", folder))?;
        for entry in fs::read_dir(folder).map_err(RunFileError::io("read", folder))? {
            let entry = entry.map_err(RunFileError::io("read", folder))?;
            if entry.file_name().to_string_lossy().ends_with(".tmp") {
                let path = entry.path();
                let removed = if path.is_dir() {
                    fs::remove_dir_all(&path)
                } else {
                    fs::remove_file(&path)
                };
                removed.map_err(RunFileError::io("remove", &path))?;
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            retention,
            hook: None,
        })
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

    /// Looks at the checkpoints of a folder without touching anything.
    pub fn look(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            retention: Retention::last(1),
            hook: None,
        }
    }

    /// Before a system call of the save of `step`.
    fn call(&self, step: u64, path: &Path) -> Result<(), RunFileError> {
        match &self.hook {
            Some(hook) => hook(step).map_err(RunFileError::io("write", path)),
            None => Ok(()),
        }
    }

    /// Saves a checkpoint. `before_manifest` makes durable what the state refers to (the journal's lines).
    ///
    /// Where anything fails, the temporary folder is removed and the checkpoints before it are untouched.
    pub fn save<T: Serialize>(
        &self,
        step: u64,
        state: &T,
        files: Vec<NamedFile>,
        before_manifest: impl FnOnce() -> Result<(), RunFileError>,
    ) -> Result<SaveReport, RunFileError> {
        let name = folder_name(step);
        let temporary = self.folder.join(format!(".{name}.tmp"));
        let written = self.write(&temporary, step, state, files, before_manifest);
        let report = match written {
            Ok(report) => report,
            Err(error) => {
                let _ = fs::remove_dir_all(&temporary);
                return Err(error);
            }
        };
        let path = self.folder.join(&name);
        if path.exists() {
            // An older run of the same step (saved before a rewind); the new one replaces it.
            self.call(step, &path)?;
            fs::remove_dir_all(&path).map_err(RunFileError::io("replace", &path))?;
        }
        self.call(step, &path)?;
        fs::rename(&temporary, &path).map_err(RunFileError::io("rename", &temporary))?;
        self.call(step, &self.folder)?;
        sync_folder(&self.folder)?;
        let latest = self.folder.join("latest");
        self.call(step, &latest)?;
        write_atomically(&latest, name.as_bytes())?;
        self.retain(step)?;
        Ok(report)
    }

    fn write<T: Serialize>(
        &self,
        folder: &Path,
        step: u64,
        state: &T,
        files: Vec<NamedFile>,
        before_manifest: impl FnOnce() -> Result<(), RunFileError>,
    ) -> Result<SaveReport, RunFileError> {
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(RunFileError::io("remove", folder))?;
        }
        self.call(step, folder)?;
        fs::create_dir(folder).map_err(RunFileError::io("create", folder))?;
        let state = serde_json::to_vec_pretty(state)
            .map_err(io::Error::from)
            .map_err(RunFileError::io("write", &folder.join(STATE)))?;
        let mut entries = BTreeMap::new();
        for file in files.into_iter().chain([NamedFile {
            name: STATE.to_owned(),
            write: Box::new(move |out| out.write_all(&state)),
        }]) {
            let path = folder.join(&file.name);
            let entry = self.write_hashed(step, &path, file.write)?;
            entries.insert(file.name, entry);
        }
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
        self.write_hashed(step, &path, Box::new(move |out| out.write_all(&text)))?;
        self.call(step, folder)?;
        sync_folder(folder)?;
        Ok(SaveReport {
            step,
            bytes: manifest.bytes(),
        })
    }

    /// All checkpoints by step, each verified.
    pub fn list(&self) -> Result<Vec<Entry>, RunFileError> {
        let steps = self.steps()?.into_iter();
        Ok(steps.map(|step| self.entry(step)).collect())
    }

    /// The checkpoint of a step, verified, whether it is there or not.
    pub fn entry(&self, step: u64) -> Entry {
        let path = self.folder.join(folder_name(step));
        let status = Manifest::verify(&path).map(|manifest| manifest.bytes());
        Entry { step, path, status }
    }

    /// The newest checkpoint that verifies and whose state can be read, and the newer ones that do not.
    ///
    /// `None` where there is no checkpoint at all. Where there are some but none verifies, `passed_over` of the error says
    /// why: a run must never begin again at 0 without being told to.
    pub fn newest<T: DeserializeOwned>(&self) -> Result<Option<Opened<T>>, NoneVerifies> {
        let steps = self.steps()?;
        if steps.is_empty() {
            return Ok(None);
        }
        let mut passed_over = Vec::new();
        for step in steps.into_iter().rev() {
            let path = self.folder.join(folder_name(step));
            let state = Manifest::verify(&path).and_then(|_| {
                let text = fs::read_to_string(path.join(STATE))
                    .map_err(|error| format!("{STATE}: {error}"))?;
                serde_json::from_str(&text).map_err(|error| format!("{STATE}: {error}"))
            });
            match state {
                Ok(state) => {
                    return Ok(Some(Opened {
                        step,
                        path,
                        state,
                        passed_over,
                    }));
                }
                Err(reason) => passed_over.push(Entry {
                    step,
                    path,
                    status: Err(reason),
                }),
            }
        }
        Err(NoneVerifies::Damaged {
            folder: self.folder.clone(),
            passed_over,
        })
    }

    /// The steps of all checkpoints, in order; none of them is read.
    pub fn steps(&self) -> Result<Vec<u64>, RunFileError> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(RunFileError::io("read", &self.folder))? {
            let entry = entry.map_err(RunFileError::io("read", &self.folder))?;
            let name = entry.file_name();
            if let Some(step) = name
                .to_str()
                .and_then(|name| name.strip_prefix("step-")?.parse().ok())
            {
                steps.push(step);
            }
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes what need not stay. Only called after a save, so that of step `saved` has just been written whole; what else may
    /// lie there of later steps is not touched, and does not count.
    fn retain(&self, saved: u64) -> Result<(), RunFileError> {
        let mut steps = self.steps()?;
        steps.retain(|step| *step <= saved);
        for step in self.retention.surplus(&steps) {
            let path = self.folder.join(folder_name(step));
            self.call(saved, &path)?;
            fs::remove_dir_all(&path).map_err(RunFileError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Writes, hashes and fsyncs a file.
    fn write_hashed(
        &self,
        step: u64,
        path: &Path,
        write: FileWriter,
    ) -> Result<FileEntry, RunFileError> {
        let failed = || RunFileError::io("write", path);
        self.call(step, path)?;
        let file = File::create(path).map_err(failed())?;
        let mut out = Hashing {
            out: BufWriter::new(file),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        };
        self.call(step, path)?;
        write(&mut out).map_err(failed())?;
        out.flush().map_err(failed())?;
        self.call(step, path)?;
        out.out.get_ref().sync_all().map_err(failed())?;
        Ok(FileEntry {
            bytes: out.bytes,
            blake3: out.hasher.finalize().to_hex().to_string(),
        })
    }

    /// Sets aside the checkpoints after `step`, so that a run goes on from there: they are renamed, not deleted.
    pub fn set_aside_after(&self, step: u64) -> Result<Vec<u64>, RunFileError> {
        let newer: Vec<u64> = self
            .steps()?
            .into_iter()
            .filter(|other| *other > step)
            .collect();
        for newer in &newer {
            let path = self.folder.join(folder_name(*newer));
            // One of this step may have been set aside before, and stays.
            let name = format!("aside-{}", folder_name(*newer));
            let aside = (1..)
                .map(|number| match number {
                    1 => self.folder.join(&name),
                    _ => self.folder.join(format!("{name}-{number}")),
                })
                .find(|aside| !aside.exists())
                .unwrap_or_else(|| self.folder.join(&name));
            fs::rename(&path, &aside).map_err(RunFileError::io("rename", &path))?;
        }
        Ok(newer)
    }
}

/// Why no checkpoint could be opened.
#[derive(Debug, thiserror::Error)]
pub enum NoneVerifies {
    /// The folder could not be read.
    #[error(transparent)]
    File(#[from] RunFileError),
    /// There are checkpoints, but each is damaged.
    #[error("no checkpoint in {} verifies: {}", folder.display(), describe(passed_over))]
    Damaged {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Each one, and why.
        passed_over: Vec<Entry>,
    },
}

fn describe(entries: &[Entry]) -> String {
    let parts: Vec<String> = entries
        .iter()
        .map(|entry| match &entry.status {
            Ok(_) => folder_name(entry.step),
            Err(reason) => format!("{}: {reason}", folder_name(entry.step)),
        })
        .collect();
    parts.join("; ")
}

fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

struct Hashing {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
