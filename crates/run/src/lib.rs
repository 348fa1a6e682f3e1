//! Writes and reads every file of a run's folder, and truncates the files on resume.
//!
//! [`RunFolder`] knows the paths and holds the lock that keeps a second process out. [`records`] defines the lines of
//! the JSON Lines files and the summary, in a stable format for other programs. [`Journal`] appends these lines, and
//! truncates the files when a run resumes from a checkpoint. [`CheckpointStore`] saves checkpoints atomically and
//! verifies them before it loads them. [`RunView`] reads a run's folder, live or finished.
//!
//! ```
//! use ddk_run::{RunView, append_event, records::EventKind};
//!
//! let folder = std::env::temp_dir().join("ddk-run-example");
//! std::fs::create_dir_all(&folder).unwrap();
//! append_event(&folder, EventKind::Started, "process 1")?;
//! let status = RunView::read(&folder).status(None);
//! assert_eq!((status.step, status.incidents.len()), (0, 0));
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok::<(), ddk_run::RunFileError>(())
//! ```

mod checkpoint;
pub mod control;
mod error;
mod folder;
mod journal;
mod manifest;
mod overrides;
pub mod read;
pub mod records;
mod restart;
mod step;
pub mod texts;
pub mod view;

pub use checkpoint::{
    CheckpointStore, Entry, Measured, Opened, Retention, SaveHook, SaveReport, SnapshotFile,
    bytes_written as checkpoint_bytes_written,
};
pub use error::RunFileError;
pub use folder::RunFolder;
pub use journal::{Journal, Lengths, append_event, record_event};
pub use manifest::FORMAT as CHECKPOINT_FORMAT;
pub use overrides::{Assignments, OVERRIDES, Override, Overrides, Source};
pub use restart::recorded_save;
pub use step::{MicroBatchSums, PhaseSeconds, SequenceLoss, StepPhase, UpdateStats};
pub use view::RunView;
