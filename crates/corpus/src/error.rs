//! Defines the errors of preparing and reading a corpus.

use std::{
    io,
    path::{Path, PathBuf},
};

use ddk_files::FileError;

use crate::Quarantined;

/// An error in preparing or reading a corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A prepared file that cannot be read at some offset.
    #[error("cannot read {} at byte {offset}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Offset in bytes.
        offset: u64,
        /// The system's error.
        source: io::Error,
    },
    /// A pattern that matches nothing.
    #[error("domain `{domain}`: `{pattern}` matches no file{}", within(folder.as_deref()))]
    NoFiles {
        /// The domain.
        domain: String,
        /// The file, folder or glob from the configuration.
        pattern: String,
        /// The folder where it starts if it is relative.
        folder: Option<PathBuf>,
    },
    /// An invalid glob.
    #[error("domain `{domain}`: `{pattern}` is not a valid pattern: {reason}")]
    BadPattern {
        /// The domain.
        domain: String,
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Files of unknown format.
    #[error("domain `{domain}`: {}", refused(*count, files))]
    UnknownFormat {
        /// The domain.
        domain: String,
        /// Number of refused files.
        count: usize,
        /// The first refused files, and for each of them why it is refused, and what to do.
        files: Vec<(PathBuf, String)>,
    },
    /// A domain without enough text.
    #[error("domain `{domain}` {what}")]
    TooLittle {
        /// The domain.
        domain: String,
        /// What it lacks, and what to change.
        what: &'static str,
    },
    /// More unusable records than allowed.
    #[error(
        "domain `{domain}`: {bad} of {}{records} records cannot be used, more than corpus.max_bad_fraction = {limit} \
         allows; most are in {}, the first at {}: {}{}",
        if *whole { "" } else { "the first " }, worst.file.display(), worst.place(), worst.reason, having(fields)
    )]
    TooManyBad {
        /// The domain.
        domain: String,
        /// Unusable records.
        bad: u64,
        /// Records read.
        records: u64,
        /// Whether these are all records. Reading stops once the limit can no longer be met.
        whole: bool,
        /// Maximum share.
        limit: f64,
        /// The first unusable record in the source with the most of them.
        worst: Box<Quarantined>,
        /// Fields of the records that lack the required one; empty if none lacks it.
        fields: Vec<String>,
    },
    /// Files that cannot be read to their end hold more bytes than allowed.
    #[error(
        "domain `{domain}`: at least {:.1}% of its files' bytes are in files that cannot be read to their end, \
         more than corpus.max_bad_fraction = {limit} allows; the first is {} at line {line}: {reason}",
        share * 100.0, path.display()
    )]
    TooMuchDamaged {
        /// The domain.
        domain: String,
        /// Share of the bytes in such files.
        share: f64,
        /// Maximum share.
        limit: f64,
        /// The first such file.
        path: PathBuf,
        /// The line or row that could not be read.
        line: u64,
        /// What is wrong there.
        reason: String,
    },
    /// A domain that has not been prepared.
    #[error("domain `{domain}` is not prepared in {}", folder.display())]
    NotPrepared {
        /// The domain.
        domain: String,
        /// The corpus folder.
        folder: PathBuf,
    },
    /// A block of a prepared file that changed after it was written.
    #[error("{} is damaged: the {bytes} bytes at byte {offset} do not match their checksum: prepare the corpus \
             again (ddk prepare CONFIG --force)", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the block starts, in bytes.
        offset: u64,
        /// Bytes of the block.
        bytes: u64,
    },
    /// A prepared file that does not match its manifest.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A tokenizer that cannot be used.
    #[error("tokenizer {}: {reason}", path.display())]
    Tokenizer {
        /// Its folder or file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A domain of token ids that another tokenizer made.
    #[error(
        "domain `{domain}`: its ids were made by another tokenizer: {}, but the corpus has {}",
        with_hash(theirs, theirs_hash),
        with_hash(ours, ours_hash)
    )]
    OtherTokenizer {
        /// The domain.
        domain: String,
        /// The folder of the tokenizer that made the ids.
        theirs: PathBuf,
        /// BLAKE3 of its tokenizer.json.
        theirs_hash: String,
        /// The folder of the corpus's tokenizer.
        ours: PathBuf,
        /// BLAKE3 of its tokenizer.json.
        ours_hash: String,
    },
    /// Two tokenizers that assign one id to different tokens.
    #[error("the tokenizers of {} and {} differ: {difference}", one.display(), other.display())]
    TokenizersDiffer {
        /// Folder of one tokenizer.
        one: PathBuf,
        /// Folder of the other.
        other: PathBuf,
        /// The first difference.
        difference: String,
    },
}

/// The folder as an error names it, with the start of a hash.
fn with_hash(folder: &Path, hash: &str) -> String {
    let start = hash.get(..16).unwrap_or(hash);
    format!("{} (tokenizer.json {start})", folder.display())
}

fn within(folder: Option<&Path>) -> String {
    folder.map_or_else(String::new, |folder| format!(" in {}", folder.display()))
}

fn refused(count: usize, files: &[(PathBuf, String)]) -> String {
    let mut text = match count {
        1 => "1 file has an unknown format".to_owned(),
        _ => format!("{count} files have unknown formats"),
    };
    for (path, reason) in files {
        text.push_str(&format!("\n{}: {reason}", path.display()));
    }
    if count > files.len() {
        text.push_str(&format!("\nand {} more", count - files.len()));
    }
    text
}

/// The part of a message that names the fields that the records do have.
pub(crate) fn having(fields: &[String]) -> String {
    match fields {
        [] => String::new(),
        [one] => format!("; its records have the field `{one}`"),
        _ => format!("; its records have the fields `{}`", fields.join("`, `")),
    }
}

impl CorpusError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let at = FileError::at(action, path);
        |source| at(source).into()
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// Like [`Self::damaged`], for a file that only a new preparation replaces.
    pub(crate) fn lost(path: &Path, reason: impl std::fmt::Display) -> Self {
        let advice = "prepare the corpus again (ddk prepare CONFIG --force)";
        Self::damaged(path, format!("{reason}: {advice}"))
    }
}
