//! Decoder-only transformers on libtorch, in and out of Hugging Face folders.
//!
//! [`Model`] is what the rest of the program sees: load, hidden states, output matrix, save. `families` has a
//! small file for each family, which turns its `config.json` ([`ModelConfig`]) into a `design`; a `decoder`
//! is put together from shared `parts` as the design says. [`Trace`] is a forward whose backward is called by
//! hand, from the hidden states and from the outputs of chosen layers; [`Output`] is the end of a model
//! alone; [`Cache`] is for writing token by token. [`safetensors`] reads and writes tensors by name;
//! [`Weights`] are the tensors of a folder, sharded or not.

mod config;
mod decoder;
mod design;
mod error;
mod export;
mod families;
mod fields;
mod flops;
mod frozen;
mod model;
mod output;
mod padding;
mod parameters;
mod parts;
mod replace;
pub mod safetensors;
mod trace;
mod weights;

pub use config::{Architecture, CONFIG_HASH, ModelConfig, ParameterCounts};
pub use decoder::Cache;
pub use error::ModelError;
pub use export::{Export, TOKENIZER_FILES, same_folder};
pub use flops::Flops;
pub use frozen::Frozen;
pub use model::{Head, Model, Placement};
pub use output::Output;
pub use padding::Parts;
pub use replace::may_replace;
pub use trace::Trace;
pub use weights::Weights;
