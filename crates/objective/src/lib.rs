//! Computes distillation losses from hidden states, chunk by chunk.
//!
//! [`chunked_head`] takes the hidden states and LM heads of student and teacher. For each chunk of positions it
//! forms the logits, the loss, and the gradients with respect to the student's hidden states and LM head, and then
//! drops the logits. Memory therefore does not grow with batch x length x vocabulary, and the teacher's output is
//! `d_model` numbers per position. [`Objective`] says what to minimize. Softmaxes are in fp32 (f64 for f64 inputs),
//! whatever the dtype of the models. [`layer_loss`] is TED's distance between layers.
//!
//! ```
//! use ddk_objective::{Objective, default_chunk};
//!
//! let objective = Objective::cross_entropy();
//! assert!(!objective.needs_teacher_output());
//! // Positions whose logits are formed at a time.
//! assert!(default_chunk(151_936, tch::Device::Cpu) >= 1);
//! ```

mod chunk;
mod divergence;
mod error;
mod gpu;
mod head;
mod layers;
mod logits;
mod objective;

pub use chunk::default_chunk;
pub use ddk_kernel::Divergence;
pub use error::ObjectiveError;
pub use head::{
    Detail, HeadGradients, HeadOptions, HeadOutput, PerPosition, Positions, chunked_head,
    cross_entropy_sum,
};
pub use layers::{LayerInput, LayerOutput, layer_loss};
pub use logits::{HeadInput, LogitBuffers};
pub use objective::Objective;
