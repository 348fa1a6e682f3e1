//! The paths and the lock of a run's folder.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{RunFileError, read};

/// The lock file, the first file that DDK creates in a run's folder.
pub(crate) const LOCK: &str = "lock";

/// A run's folder, locked for this process until it and its clones are dropped. Other ranks of the same run read it
/// without the lock.
///
/// The lock is the kernel's (`flock`). The kernel releases it however the process ends, so it is never stale.
#[derive(Debug, Clone)]
pub struct RunFolder {
    path: PathBuf,
    _lock: Option<Arc<File>>,
}

impl RunFolder {
    /// Opens the folder of a run, or creates a new one, and locks it for this process.
    ///
    /// # Errors
    /// If the folder is not empty and is not a run's, if another process has it open, or if it cannot be created or
    /// locked.
    pub fn open(path: &Path) -> Result<Self, RunFileError> {
        // After a crash before the configuration was written, only the lock file marks the folder as a run's.
        let is_ours = Self::holds_a_run(path) || path.join(LOCK).exists();
        if path.exists() && !is_ours && !read::names(path)?.is_empty() {
            return Err(RunFileError::NotARun(path.to_owned()));
        }
        fs::create_dir_all(path).map_err(RunFileError::io("create", path))?;
        let lock = Self::lock(path)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: Some(Arc::new(lock)),
        })
    }

    /// The folder of a run that another process has locked and this one only reads.
    pub fn follow(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            _lock: None,
        }
    }

    /// Works like [`Self::open`], but only for a new run.
    ///
    /// # Errors
    /// If the folder holds a run; otherwise as for [`Self::open`].
    pub fn create(path: &Path) -> Result<Self, RunFileError> {
        if Self::holds_a_run(path) {
            return Err(RunFileError::Exists(path.to_owned()));
        }
        Self::open(path)
    }

    /// Whether a run was started in this folder.
    pub fn holds_a_run(path: &Path) -> bool {
        path.join("config.toml").exists()
    }

    /// Returns the ID of the process that works on the run in this folder. Does not touch the lock, because taking it
    /// only to look could keep a run from starting.
    pub fn holder(path: &Path) -> Option<u32> {
        let lock = path.join(LOCK);
        let pid: u32 = fs::read_to_string(&lock).ok()?.trim().parse().ok()?;
        let inode = fs::metadata(&lock).ok()?.ino();
        let locks = fs::read_to_string("/proc/locks").ok()?;
        // `1: FLOCK  ADVISORY  WRITE 4711 08:01:123456 0 EOF`
        let is_held = locks.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, "FLOCK", _, _, holder, place, ..] = words[..] else {
                return false;
            };
            holder.parse() == Ok(pid) && place.rsplit(':').next() == Some(&inode.to_string())
        });
        is_held.then_some(pid)
    }

    fn lock(folder: &Path) -> Result<File, RunFileError> {
        let path = folder.join(LOCK);
        let mut file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(RunFileError::io("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(RunFileError::Locked {
                    folder: folder.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(RunFileError::io("lock", &path)(error)),
        }
        let written = file.set_len(0);
        let written = written.and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(RunFileError::io("write", &path))?;
        Ok(file)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved settings.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// The result, once the run has ended.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// The checkpoints' folder.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The exported student: a Hugging Face folder.
    pub fn student(&self) -> PathBuf {
        self.path.join("student")
    }

    /// The log of a rank.
    pub fn log(&self, rank: usize) -> PathBuf {
        match rank {
            0 => self.path.join("run.log"),
            rank => self.path.join(format!("run-rank-{rank}.log")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_held_by_one_at_a_time_and_freed_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run");
        let first = RunFolder::create(&path).unwrap();
        let error = RunFolder::open(&path).unwrap_err();
        assert!(
            matches!(&error, RunFileError::Locked { holder, .. } if *holder == std::process::id().to_string())
        );
        assert_eq!(RunFolder::holder(&path), Some(std::process::id()));
        drop(first);
        assert_eq!(RunFolder::holder(&path), None);
        RunFolder::open(&path).unwrap();
    }

    #[test]
    fn other_peoples_folders_and_existing_runs_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.tex"), "").unwrap();
        assert!(matches!(
            RunFolder::open(folder.path()),
            Err(RunFileError::NotARun(_))
        ));
        // A folder that a crash left without a configuration still counts as a run's.
        let begun = folder.path().join("begun");
        drop(RunFolder::create(&begun).unwrap());
        fs::write(begun.join("inputs.json"), "{}").unwrap();
        RunFolder::open(&begun).unwrap();
        fs::write(folder.path().join("config.toml"), "").unwrap();
        assert!(matches!(
            RunFolder::create(folder.path()),
            Err(RunFileError::Exists(_))
        ));
        RunFolder::open(folder.path()).unwrap();
    }
}
