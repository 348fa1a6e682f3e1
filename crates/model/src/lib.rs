//! Builds decoder-only transformers on libtorch. Reads and writes Hugging Face model folders.
//!
//! [`Model`] is the interface for the rest of the program: load, hidden states, LM head, save. Each family in
//! `families` is a small file that turns its `config.json` ([`ModelConfig`]) into an architecture spec. `decoder`
//! builds the model from shared `parts` according to the spec. [`Trace`] is a forward pass whose backward pass the
//! caller runs, from the hidden states and from the outputs of chosen layers. [`LmHead`] is the final norm and LM
//! head alone. [`Cache`] is the KV cache for token-by-token generation. [`safetensors`] reads and writes tensors by
//! name. [`Weights`] holds the tensors of a folder, sharded or not.
//!
//! ```
//! use ddk_model::{Architecture, Model, ModelConfig};
//! use tch::{Device, Kind, Tensor};
//!
//! let architecture = Architecture {
//!     vocab_size: 32,
//!     hidden_size: 8,
//!     intermediate_size: 16,
//!     num_hidden_layers: 1,
//!     num_attention_heads: 2,
//!     num_key_value_heads: 1,
//!     max_position_embeddings: 16,
//!     rope_theta: 10_000.0,
//!     tie_word_embeddings: true,
//! };
//! let model = Model::random(ModelConfig::llama(architecture, None)?, 7, Device::Cpu)?;
//! let tokens = Tensor::zeros([2, 4], (Kind::Int64, Device::Cpu));
//! assert_eq!(model.hidden(&tokens, None)?.size(), [2, 4, 8]);
//! # Ok::<(), ddk_model::ModelError>(())
//! ```

mod config;
mod decoder;
mod error;
mod export;
mod families;
mod fields;
mod flops;
mod lm_head;
mod model;
mod padding;
mod parameters;
mod parts;
mod replace;
pub mod safetensors;
mod shared_weights;
mod shrink;
mod spec;
mod trace;
mod weights;

pub use config::{Architecture, ModelConfig};
pub use decoder::{Cache, Placement};
pub use error::ModelError;
pub use export::{Export, TOKENIZER_FILES, same_folder};
pub use flops::Flops;
pub use lm_head::LmHead;
pub use model::Model;
pub use padding::Parts;
pub use parameters::normal;
pub use replace::may_replace;
pub use safetensors::{bytes_loaded, bytes_written};
pub use shared_weights::SharedWeights;
pub use trace::Trace;
pub use weights::{Weights, is_head};
