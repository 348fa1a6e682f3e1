//! Finds models and data sets of the Hugging Face Hub in the local cache, and downloads what is missing.
//!
//! The cache is the one that all Hugging Face programs share, with their layout: `refs` names the commit of a branch,
//! `snapshots` holds the files of a commit as links, and `blobs` holds their contents. [`Hub::model`] and
//! [`Hub::dataset`] ask the server nothing if the cache holds all that is wanted. A download that breaks resumes where
//! it stopped, and its hash is checked before anyone can see the file.
//!
//! ```
//! use ddk_hub::{Kind, Name};
//!
//! let name = Name::model("Qwen/Qwen2.5-1.5B@v1.0")?.unwrap();
//! assert_eq!((name.id(), name.revision()), ("Qwen/Qwen2.5-1.5B", "v1.0"));
//! // A path, not a name.
//! assert!(Name::model("models/qwen/teacher")?.is_none());
//! let name = Name::dataset("hf://datasets/allenai/c4/en/*.json.gz")?.unwrap();
//! assert_eq!((name.kind(), name.path()), (Kind::Dataset, Some("en/*.json.gz")));
//! # Ok::<(), ddk_hub::HubError>(())
//! ```

mod cache;
mod download;
mod error;
mod hash;
mod http;
mod hub;
mod listing;
mod model;
mod name;
mod options;

pub use download::{Event, Transfer};
pub use error::HubError;
pub use hub::{Found, Hub};
pub use model::{Choice, IsWanted, Parts};
pub use name::{Kind, Name};
pub use options::{Options, Token};
