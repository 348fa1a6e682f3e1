//! Errors of the Hub and its cache.

use std::{io, path::PathBuf};

use ddk_files::FileError;

use crate::Name;

/// An error of the Hub, the connection to it, or its cache.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The text is no name.
    #[error("\"{text}\" is not a name on the Hugging Face Hub: expected {expected}")]
    BadName {
        /// The text.
        text: String,
        /// The expected form.
        expected: &'static str,
    },
    /// There is no folder of that name here and no repository on the Hub.
    #[error(
        "{name} is neither a folder here nor a {kind} on the Hub at {endpoint} that you can see"
    )]
    NoRepository {
        /// The name.
        name: String,
        /// "model" or "data set".
        kind: &'static str,
        /// The Hub's address.
        endpoint: String,
    },
    /// The repository has no such revision.
    #[error("the {kind} {name} on the Hub has no revision `{revision}`")]
    NoRevision {
        /// The repository.
        name: String,
        /// "model" or "data set".
        kind: &'static str,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The user may not read the repository.
    #[error("the Hub refuses access to {name} (HTTP status {status}): {reason}")]
    NoAccess {
        /// The repository.
        name: String,
        /// The address of its page.
        page: String,
        /// The status.
        status: u16,
        /// The Hub's own words.
        reason: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// Connections are forbidden, and the cache lacks a file.
    #[error("{name} is not complete in {}, and HF_HUB_OFFLINE forbids downloading the rest{what}", cache.display())]
    Offline {
        /// The repository.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// What is missing, in parentheses, or nothing.
        what: String,
        /// The command that downloads it.
        command: String,
    },
    /// The Hub does not answer, or the connection breaks each time.
    #[error("cannot download {what} from {address} after {attempts} attempts: {reason}")]
    Unreachable {
        /// The repository or file.
        what: String,
        /// The address.
        address: String,
        /// Number of attempts.
        attempts: u32,
        /// The last failure.
        reason: String,
    },
    /// The server answers, but not like the Hub.
    #[error("{address} does not answer like the Hugging Face Hub: {reason}")]
    NotAHub {
        /// The address.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The token cannot be sent.
    #[error("the Hugging Face token contains characters that no token has")]
    BadToken,
    /// The contents of a file are not those that the Hub names.
    #[error(
        "{file} of {name} arrived damaged: its hash is {found}, expected {expected}. The file was removed"
    )]
    Damaged {
        /// The repository.
        name: String,
        /// The file.
        file: String,
        /// The hash of what arrived.
        found: String,
        /// The hash that the Hub names.
        expected: String,
    },
    /// The disk has no room.
    #[error("there is no room for {name}: the download needs {:.2} GB more in {}, which has {:.2} GB free",
            *needed as f64 / 1e9, folder.display(), *free as f64 / 1e9)]
    DiskFull {
        /// The repository.
        name: String,
        /// The cache.
        folder: PathBuf,
        /// Bytes to download.
        needed: u64,
        /// Bytes on the disk.
        free: u64,
    },
    /// The repository holds only weights that can run code when they are read.
    #[error(
        "{name} on the Hub has only pickled weights ({file}), which can run code when they are read"
    )]
    Pickled {
        /// The repository.
        name: String,
        /// One of the files.
        file: String,
    },
    /// The repository lacks a file.
    #[error("{name} on the Hub has no {missing}: {expected}")]
    Lacks {
        /// The repository.
        name: String,
        /// The file.
        missing: String,
        /// What was expected.
        expected: String,
    },
    /// A file in the repository is not what its name says.
    #[error("{}: {reason}", file.display())]
    Malformed {
        /// The file in the cache.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of the cache cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

impl HubError {
    pub(crate) fn bad_name(text: &str, expected: &'static str) -> Self {
        Self::BadName {
            text: text.to_owned(),
            expected,
        }
    }

    pub(crate) fn not_a_hub(address: &str, reason: impl Into<String>) -> Self {
        Self::NotAHub {
            address: address.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn lacks(
        name: &Name,
        missing: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self::Lacks {
            name: name.to_string(),
            missing: missing.into(),
            expected: expected.into(),
        }
    }

    /// Returns what the user can do about it.
    pub fn advice(&self) -> Option<String> {
        Some(match self {
            Self::NoRepository { .. } => "check the spelling of the name or the path; for a private or gated \
                                          repository, set HF_TOKEN (docs/hub.md)"
                .to_owned(),
            Self::NoRevision { .. } => {
                "name a branch, a tag or a commit after the @, or leave it out".to_owned()
            }
            Self::NoAccess {
                page, with_token, ..
            } => {
                let token = if *with_token {
                    "check that HF_TOKEN belongs to that account and may read it"
                } else {
                    "set HF_TOKEN to a token of that account (https://huggingface.co/settings/tokens)"
                };
                format!("accept the license at {page} with your account, then {token}")
            }
            Self::Offline { command, .. } => format!(
                "run `{command}` where there is a connection and copy the cache here, or unset HF_HUB_OFFLINE"
            ),
            Self::Unreachable { .. } => "if it is a path, there is no such folder here; otherwise, the same command \
                                         resumes the download. Without a connection, set HF_HUB_OFFLINE=1 to use \
                                         only the cache; for a mirror, set HF_ENDPOINT"
                .to_owned(),
            Self::NotAHub { .. } => "check HF_ENDPOINT".to_owned(),
            Self::BadToken => {
                "set HF_TOKEN to the token as the Hub shows it, such as hf_abc…".to_owned()
            }
            Self::Damaged { .. } => "run the same command again".to_owned(),
            Self::DiskFull { .. } => {
                "free some space, or set HF_HUB_CACHE to a folder on a larger disk".to_owned()
            }
            Self::Pickled { name, .. } => {
                let id = name.split('@').next().unwrap_or(name);
                format!(
                    "convert them once, in Python: AutoModelForCausalLM.from_pretrained(\"{id}\")\
                     .save_pretrained(\"FOLDER\"), the same with AutoTokenizer, and name FOLDER instead"
                )
            }
            Self::BadName { .. } | Self::Lacks { .. } | Self::Malformed { .. } | Self::File(_) => {
                return None;
            }
        })
    }

    /// Returns whether the name, the token or the license is at fault, not the connection or the disk.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::BadName { .. }
                | Self::NoRepository { .. }
                | Self::NoRevision { .. }
                | Self::NoAccess { .. }
                | Self::Offline { .. }
                | Self::BadToken
                | Self::Pickled { .. }
                | Self::Lacks { .. }
        )
    }
}

/// Why an attempt failed.
pub(crate) enum Failure {
    /// Another attempt may succeed.
    Passing(String),
    /// No other attempt can succeed.
    Final(HubError),
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// Names the action that failed, unless the disk is full.
pub(crate) fn disk(
    action: &'static str,
    path: &std::path::Path,
) -> impl FnOnce(io::Error) -> HubError + use<> {
    let at = FileError::at(action, path);
    move |error| HubError::File(at(error))
}
