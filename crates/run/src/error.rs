//! What can go wrong with a run's files.

use std::{
    io,
    path::{Path, PathBuf},
};

use ddk_files::FileError;

/// An error of a run's folder; each names the file.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process holds the run.
    #[error("the run folder {} is in use by process {holder}", folder.display())]
    Locked {
        /// The run's folder.
        folder: PathBuf,
        /// Its process id, as it wrote it.
        holder: String,
    },
    /// A new run was insisted on where one is.
    #[error("the folder {} already contains a run", .0.display())]
    Exists(PathBuf),
    /// A folder with files that are not a run's.
    #[error("the folder {} is not empty and is not the folder of a run (it has no config.toml)", .0.display())]
    NotARun(PathBuf),
    /// A line that is not the record it should be.
    #[error("{}:{line}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a run that cannot be read: the run's folder, and file and reason.
    #[error("{folder}: {problem}", folder = .0.display(), problem = .1)]
    Unreadable(PathBuf, String),
    /// A file shorter than a checkpoint says: lines that were saved have been lost.
    #[error("{} has {found} bytes, but had {expected} when the checkpoint was saved: the file was truncated or \
             replaced since then", path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// Bytes there should be at least.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
}

impl RunFileError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let at = FileError::at(action, path);
        |source| at(source).into()
    }
}
