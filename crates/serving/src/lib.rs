//! Reads the hidden states of a teacher that a stock vLLM server holds.
//!
//! [`TeacherServer::hidden_states`] sends token ids and returns the hidden states after the final norm, so that only
//! the teacher's LM head is needed locally. It splits a batch over several requests in flight, repeats the requests
//! that an outage breaks, and refuses an answer that is not exactly what it asked for.
//!
//! ```
//! use std::time::Duration;
//! use ddk_serving::{HiddenDtype, ServerOptions, ServingError, TeacherServer, command_line};
//!
//! assert_eq!(
//!     command_line("Qwen/Qwen3-14B", 4096),
//!     "vllm serve Qwen/Qwen3-14B --runner pooling --convert embed --max-model-len 4097 --pooler-config \
//!      '{\"task\":\"token_embed\",\"tok_pooling_type\":\"ALL\",\"use_activation\":false}'"
//! );
//! let options = ServerOptions {
//!     address: "gpu-7:8000".to_owned(),
//!     served_model: None,
//!     hidden_size: 5120,
//!     dtype: HiddenDtype::Bf16,
//!     requests_in_flight: 4,
//!     request_timeout: Duration::from_secs(300),
//!     patience: Duration::from_secs(1800),
//!     token: None,
//! };
//! // The scheme is missing.
//! let refused = TeacherServer::new(options.clone());
//! assert!(matches!(refused, Err(ServingError::BadAddress { .. })));
//! let server = TeacherServer::new(ServerOptions { address: "http://gpu-7:8000".to_owned(), ..options })?;
//! assert_eq!(server.address(), "http://gpu-7:8000");
//! # Ok::<(), ServingError>(())
//! ```

mod answer;
mod client;
mod command;
mod coordinator;
mod error;
mod http;
mod options;
mod server;

pub use client::Description;
pub use command::command_line;
pub use coordinator::Watch;
pub use error::ServingError;
pub use options::{HiddenDtype, ServerOptions, TOKEN};
pub use server::TeacherServer;
