//! Who does what, and when: the actors of a distillation run.
//!
//! ```text
//! DomainLoader x N ─rows─▶ Batcher ─micro-batches─▶ Teacher x M ─labeled─▶ Student ─snapshots─▶ Checkpointer
//!                             ▲                                               │
//!                             └──────interval── WeightScheduler ◀─────────────┘ perplexities
//! ```
//!
//! Data goes over bounded channels between threads; control goes over small messages between ractor actors,
//! whose handlers never block. A part that computes is a *worker*: a named thread with a loop, owned by an
//! actor ([`worker`]) that tells the actor of the [`run`] how it ended. Parts that only decide ([`weight_scheduler`])
//! are actors without a thread.
//!
//! What is computed is behind [`ports`], so that this crate never sees libtorch; `ddk-jobs` joins both. What is
//! sent goes over a [`channel`] whose ends show what their workers wait for. Start with [`run::Run::start`].

pub mod batch;
pub mod batcher;
pub mod channel;
pub mod checkpointer;
pub mod domain_loader;
pub mod error;
pub mod interval;
pub mod messages;
mod pipeline;
pub mod plan;
pub mod ports;
pub mod recovery;
pub mod run;
pub mod state;
pub mod student;
pub mod teacher;
pub mod weight_scheduler;
pub mod worker;

pub use batch::{Labeled, MicroBatch};
pub use ddk_run::records::StopReason;
pub use error::RunError;
pub use interval::Interval;
pub use messages::{End, Outcome};
pub use plan::{Live, RunPlan};
pub use ports::{Observer, Parts, PortError, Rows, StepReport, Student, Teacher, Work};
pub use run::{Generation, Run, RunHandle};
pub use state::{Fork, LoopState, LossHistory, Totals};
pub use worker::{Exit, WorkerId};
