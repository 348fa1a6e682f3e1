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
        "the label set {} is read-only for this process; get the right to write to it, or choose another folder",
        folder.display()
    )]
    ReadOnly {
        /// The set's folder.
        folder: PathBuf,
    },
    /// A provenance file that is not an object of texts.
    #[error(
        "{} is not a JSON object of texts, so DDK cannot tell what its labels depend on; remove the label set",
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
        "the label set {} has another provenance than its name says ({}); remove the label set",
        folder.display(), differences.join("; ")
    )]
    OtherProvenance {
        /// The set's folder.
        folder: PathBuf,
        /// What differs.
        differences: Vec<String>,
    },
    /// A set that a process has open.
    #[error("a process uses the label set {}; end it, and remove the label set then", folder.display())]
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
        "the key `{key}` of a record must be ASCII letters, digits, `-`, `_` and `.`, and not start with `.`"
    )]
    BadKey {
        /// The key.
        key: String,
    },
    /// A label whose length does not fit the index.
    #[error("a label has {bytes} bytes, at most {}", u32::MAX)]
    TooLong {
        /// The label's length.
        bytes: usize,
    },
}
