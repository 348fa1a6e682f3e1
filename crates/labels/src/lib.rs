//! Caches a teacher's outputs on disk, one label per sequence, for every run that needs the same outputs.
//!
//! A *label* is the bytes of a sequence's hidden states; its key is `ddk_corpus::Sequence::id()`. A [`LabelSet`] is a
//! folder of labels whose [`Provenance`] records everything that they depend on. Runs, seeds, methods and processes
//! with the same provenance share a set, and any number of them read and write it at once.
//!
//! A set's folder contains:
//!
//! - `provenance.json`: the provenance. Each process that opens the set holds a shared kernel lock on this file;
//! - `labels-*.seg`: labels, one after another. A segment has one writer, which creates it and holds a kernel lock on
//!   it. No later process appends to it, so nobody must cut a torn end while others read;
//! - `labels-*.idx`: records of fixed size, each with its own checksum, that say where a segment's labels are. A writer
//!   makes labels durable before it appends their records, so a record never points to missing data;
//! - `records/*.json`: small named values with checksums.
//!
//! A cache must never stop a run. A damaged label counts as absent, and a full disk or a reached limit ends writing.
//! [`LabelSet::take_reports`] says what happened.
//!
//! ```
//! use ddk_labels::{LabelSet, Provenance, Put};
//!
//! # let place = tempfile::tempdir().unwrap();
//! # let folder = place.path();
//! let provenance = Provenance::new([("teacher", "Qwen/Qwen3-8B".to_owned()), ("dtype", "bf16".to_owned())]);
//! let set = LabelSet::open(folder, "Qwen3-8B", &provenance, Some(1 << 40))?;
//! let id = [7; 32];
//! assert_eq!(set.get(&id)?, None);
//! assert_eq!(set.put(&id, b"hidden states")?, Put::Stored);
//! assert_eq!(set.put(&id, b"hidden states")?, Put::AlreadyThere);
//! set.flush()?;
//!
//! let elsewhere = LabelSet::find(folder, "Qwen3-8B", &provenance)?.unwrap();
//! assert_eq!(elsewhere.get(&id)?.unwrap(), b"hidden states");
//! # Ok::<(), ddk_labels::LabelError>(())
//! ```

#[cfg(test)]
mod crash_tests;
mod error;
mod folder;
mod format;
mod index;
mod provenance;
mod records;
mod report;
mod segment;
mod set;
mod writer;

pub use error::LabelError;
pub use folder::{SetInfo, remove, sets};
pub use provenance::Provenance;
pub use report::Report;
pub use set::{LabelSet, Stats};
pub use writer::Put;
