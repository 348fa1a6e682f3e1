//! The actors of a distillation run: messages and supervision.
//!
//! ```text
//! Loader x N ─sequences─▶ Batcher ─micro-batches─▶ Teacher x M ─labeled─▶ Student ─snapshots─▶ Checkpointer
//!                            ▲                                               │
//!                            └─────interval── MixtureActor ◀─────────────────┘ perplexities or losses
//! ```
//!
//! Data moves over bounded channels between threads. Control uses small messages between ractor actors, whose handlers
//! never block. A *worker* computes: it is a named thread with a loop. An actor owns it ([`worker`]) and tells the
//! [`run`]'s actor how the thread ended. Actors that only decide ([`mixture`]) have no thread.
//!
//! [`ports`] hide the computation, so this crate does not depend on libtorch; `ddk-jobs` implements them. [`channel`]s
//! show what their workers wait for. Start with [`run::Run::start`].
//!
//! ```
//! use ddk_actors::LossHistory;
//!
//! let recovery = ddk_settings::Recovery { spike_min_history: 4, ..Default::default() };
//! let mut history = LossHistory::default();
//! for loss in [2.0, 2.1, 1.9, 2.0] {
//!     history.push(loss, &recovery);
//! }
//! assert!(history.is_spike(9.0, &recovery) && !history.is_spike(2.1, &recovery));
//! ```

mod advice;
mod agreement;
pub mod batch;
pub mod batcher;
pub mod channel;
pub mod checkpointer;
pub mod error;
pub mod interval;
pub mod loader;
pub mod messages;
pub mod mixture;
mod pipeline;
pub mod plan;
pub mod ports;
pub mod recovery;
pub mod run;
pub mod state;
pub mod student;
pub mod teacher;
pub mod worker;

pub use batch::{LabeledBatch, MicroBatch, StepDraw};
pub use ddk_run::records::StopReason;
pub use error::RunError;
pub use interval::Interval;
pub use messages::{End, Outcome};
pub use plan::{DecayLeft, Live, RunPlan};
pub use ports::{Observer, Peers, PortError, Rows, StepReport, Student, Teacher, Work};
pub use run::{Generation, Run, RunHandle};
pub use state::{Fork, LoopState, LossHistory, Totals};
pub use worker::{Exit, WorkerId};
