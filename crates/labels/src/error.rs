//! Defines the errors of the label cache.

use std::path::PathBuf;

use ddk_files::FileError;

/// An error in opening, reading or writing a label set.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A set that is open for reading only, or that this process may not write.
    #[error(
        "this process cannot write to the label set {}; change the folder's permissions, or choose another folder",
        folder.display()
    )]
    ReadOnly {
        /// The set's folder.
        folder: PathBuf,
    },
    /// A provenance file that is not an object of texts.
    #[error(
        "{} is not a JSON object of strings, so DDK cannot tell what its labels depend on; remove the label set",
        path.display()
    )]
    BadProvenance {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A folder whose provenance differs from the one that its name stands for.
    #[error(
        "the label set {} has a provenance that does not match its name ({}); remove the label set",
        folder.display(), differences.join("; ")
    )]
    OtherProvenance {
        /// The set's folder.
        folder: PathBuf,
        /// What differs.
        differences: Vec<String>,
    },
    /// A set that a process has open.
    #[error("a process is using the label set {}; end it before you remove the label set", folder.display())]
    InUse {
        /// The set's folder.
        folder: PathBuf,
    },
    /// A name that is not that of a set.
    #[error("{} is not a label set", folder.display())]
    NoSet {
        /// The folder that the name stands for.
        folder: PathBuf,
    },
    /// A name of a record that cannot be a file name.
    #[error(
        "a record has the key `{key}`, expected ASCII letters, digits, `-`, `_` and `.`, not starting with `.`"
    )]
    BadKey {
        /// The key.
        key: String,
    },
    /// A label whose length does not fit the index.
    #[error("a label has {bytes} bytes, expected at most {}", u32::MAX)]
    TooLong {
        /// The label's length.
        bytes: usize,
    },
}
