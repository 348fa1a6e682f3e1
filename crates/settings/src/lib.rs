//! The configuration: each setting declared once, layered and validated.
//!
//! A field of a section ([`Run`], [`Student`], …) declares a key: its type, default, range, example and flags, and its
//! comment is the user's documentation. [`sections`] is the table of all keys, which the loader, the schema, the
//! reference, the comparison on resume, SIGHUP and `ddk compare` read. [`load`] layers files, the environment and
//! `--set` over the defaults; [`Origins`] remembers where each value came from, so that an error and `ddk config show
//! --origin` can say it.

mod data;
mod diff;
mod error;
mod keys;
mod layers;
mod limits;
mod method;
mod models;
mod reference;
mod rules;
mod run;
mod settings;
mod token;

pub use data::{Batch, Corpus, Domain, Mixture, WhenStale};
pub use ddk_corpus::{FileFormat, Packing, ValidationBy};
pub use ddk_mixture::{FirstInterval, MixturePolicy};
pub use diff::{Change, Setting, diff};
pub use error::{Error, Problem};
pub use keys::{Key, Section, keys, schema, sections};
pub use layers::{Loaded, Origins, load};
pub use method::Method;
pub use models::{Dtype, Objective, ObjectiveName, Pretrain, Shape, Student, Teacher};
pub use reference::reference;
pub use run::{
    Checkpoint, Evaluation, ExportedStudent, Faults, Guard, Log, Queues, Run, Spike, Telemetry,
    ThreadChoice,
};
pub use settings::Settings;
pub use token::Token;
