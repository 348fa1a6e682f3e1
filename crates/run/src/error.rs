//! Errors of a run's files.

use std::{
    io,
    path::{Path, PathBuf},
};

use ddk_files::FileError;

/// An error in a run's folder. Each variant names the file or folder.
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
        /// The process ID that the other process wrote into the lock file.
        holder: String,
    },
    /// A new run was required, but the folder already contains a run.
    #[error("the folder {} already contains a run", .0.display())]
    Exists(PathBuf),
    /// A folder that is not empty and is not a run's.
    #[error("the folder {} is not empty and is not the folder of a run (it has no config.toml)", .0.display())]
    NotARun(PathBuf),
    /// A line that is not a valid record.
    #[error("{}:{line}: {reason}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a run that cannot be read. Holds the run's folder, and the file with the reason.
    #[error("{folder}: {problem}", folder = .0.display(), problem = .1)]
    Unreadable(PathBuf, String),
    /// There are checkpoints, but each is damaged.
    #[error("every checkpoint in {} is damaged: {reasons}", folder.display())]
    NoneVerifies {
        /// The folder of checkpoints.
        folder: PathBuf,
        /// Why each one does not load.
        reasons: String,
    },
    /// A file that is shorter than its checkpoint says, so saved lines have been lost.
    #[error("{} has {found} bytes, but had {expected} when the checkpoint was saved: the file was truncated or \
             replaced since then", path.display())]
    Shrunk {
        /// The file.
        path: PathBuf,
        /// The minimum length in bytes.
        expected: u64,
        /// The actual length in bytes.
        found: u64,
    },
}

impl RunFileError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let at = FileError::at(action, path);
        |source| at(source).into()
    }
}
