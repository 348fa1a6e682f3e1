//! Decoder-only transformers on libtorch, in and out of Hugging Face folders.
//!
//! [`Model`] is what the rest of the program sees: load, hidden states, output matrix, save. A family reads like its paper
//! in a file of its own (`llama`), put together from shared parts (`parts`). [`ModelConfig`] is `config.json`;
//! [`safetensors`] reads and writes tensors by name; [`Weights`] are the tensors of a folder, sharded or not.

mod config;
mod error;
mod export;
mod llama;
mod model;
mod parameters;
mod parts;
pub mod safetensors;
mod weights;

pub use config::{Architecture, ModelConfig};
pub use error::ModelError;
pub use export::TOKENIZER_FILES;
pub use model::{Head, Model};
pub use weights::Weights;
