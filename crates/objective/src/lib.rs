//! The losses of distillation, computed chunk by chunk from hidden states.
//!
//! [`chunked_head`] takes hidden states of student and teacher and both output matrices. For a chunk of
//! positions it forms the logits, the loss and the gradient with respect to the student's hidden states and
//! output matrix, and drops the logits again; so memory does not grow with batch x length x vocabulary, and
//! the teacher's signal is `d_model` numbers per position. [`Objective`] says what is minimized; softmaxes are
//! in fp32 (f64 for f64 inputs) whatever the models' dtype. [`layer_loss`] is TED's distance between layers.

mod chunk;
mod divergence;
mod error;
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
