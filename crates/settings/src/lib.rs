//! What the user wrote, layered and validated.
//!
//! [`Options`] is what can be written: every key optional, unknown keys refused, its comments the
//! documentation that the schema and the reference are made from. [`load`] layers built-in defaults, files,
//! the environment and `--set`, and validates the result into [`Settings`], which the program uses and writes
//! into a run's folder. [`Origins`] remembers where each value came from, so that an error and `ddk config
//! show --origin` can say it.

mod document;
mod error;
mod load;
mod method;
mod options;
mod origin;
mod reference;
mod settings;
mod token;
mod validate;

pub use error::{Error, Problem};
pub use load::{Loaded, load};
pub use method::Method;
pub use options::{
    Dtype, ExportedStudent, FileFormat, FirstInterval, MixturePolicy, ObjectiveName, Options,
    Packing, Spike, ThreadChoice, ValidationBy, WhenStale,
};
pub use origin::{Origin, Origins};
pub use reference::{reference, schema};
pub use settings::{
    Batch, Checkpoint, Corpus, Domain, Evaluation, Faults, Guard, Log, Mixture, Objective,
    Pretrain, Queues, Run, Settings, Shape, Student, Teacher, Telemetry,
};
pub use token::Token;
