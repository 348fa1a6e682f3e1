//! Declares, layers and validates the settings.
//!
//! A field of a section ([`Run`], [`Student`], …) declares one key: type, default, range, example and flags. Its
//! comment is the user's documentation. [`sections`] is the table of all keys. The loader, the schema, the reference,
//! the comparison on resume, SIGHUP and `ddk compare` read it. [`load`] layers files, the environment and `--set`
//! over the defaults. [`Origins`] holds the place of each value, for errors and `ddk config show --origin`.

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
