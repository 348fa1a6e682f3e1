//! Declares, layers and validates the settings.
//!
//! A field of a section ([`Run`], [`Student`], …) declares one key: type, default, range, example and flags. Its
//! comment is the user's documentation. [`sections`] is the table of all keys. The loader, the schema, the reference,
//! the comparison on resume, SIGHUP and `ddk compare` read it. [`load`] layers files, the environment and `--set` over
//! the defaults. [`Origins`] holds the place of each value, for errors and `ddk config show --origin`.
//!
//! ```
//! let sets = ["optimizer.lr=1e-4".to_owned()];
//! let loaded = ddk_settings::load(&[], &sets, [])?;
//! assert_eq!(loaded.settings.optimizer.lr, 1e-4);
//! assert_eq!(loaded.origins.of("optimizer.lr"), "--set optimizer.lr=1e-4");
//! # Ok::<(), ddk_settings::Error>(())
//! ```

mod data;
mod diff;
mod error;
mod keys;
mod layers;
mod limits;
mod method;
mod migrate;
mod models;
mod places;
mod reference;
mod renamed;
mod rules;
mod run;
mod settings;
mod suggest;
mod token;
mod wording;

pub use data::{Corpus, Domain, Mixture, OnStale, Training};
pub use ddk_corpus::{FileFormat, Packing, ValidationSplit};
pub use ddk_mixture::{InitialMixture, MixturePolicy};
pub use diff::{Change, Setting, diff};
pub use error::{Error, Problem};
pub use keys::{Key, Section, keys, schema, sections};
pub use layers::{Loaded, Origins, load};
pub use method::Method;
pub use migrate::{Migrated, migrate, without_secrets};
pub use models::{
    Dtype, LrDecay, LrSchedule, LrScheduler, Objective, ObjectiveName, Optimizer, Pretrain, Shape,
    Student, Teacher, TeacherCache,
};
pub use places::Places;
pub use reference::reference;
pub use run::{
    Checkpoint, Evaluation, ExportedStudent, FaultInjection, Log, Parallel, Pipeline, Recovery,
    Run, Samples, SpikeAction, Telemetry, ThreadChoice,
};
pub use settings::Settings;
pub use suggest::suggested;
pub use token::Token;
