//! What can go wrong on a worker.

use std::path::PathBuf;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A model's folder or forward.
    #[error(transparent)]
    Model(#[from] ddk_model::ModelError),
    /// The head.
    #[error(transparent)]
    Objective(#[from] ddk_objective::ObjectiveError),
    /// A libtorch call.
    #[error(transparent)]
    Torch(#[from] ddk_torch::TorchError),
    /// A labeled batch came to a student that was built without the teacher's output matrix.
    #[error("the batch carries a teacher's hidden states, but the student has no teacher head")]
    NoTeacherHead,
    /// The excess over the teacher was asked for, and the batch carries nothing of a teacher's.
    #[error(
        "the excess over the teacher's loss is wanted, but the batch carries no hidden states of it"
    )]
    NoTeacherOutput,
    /// A batch came without the layers that filters need.
    #[error("the batch does not carry the teacher's layers that the filters are for")]
    NoLayers,
    /// A row was made with another tokenizer.
    #[error(
        "token id {token} is past the vocabulary of {vocabulary}: the text was tokenized with another tokenizer"
    )]
    TokenPastVocabulary {
        /// The id.
        token: u32,
        /// Ids that there are.
        vocabulary: i64,
    },
    /// A checkpoint's file that verified but does not hold what it should.
    #[error("{file}: {reason}")]
    BadCheckpoint {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl EngineError {
    /// Whether a device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Torch(error) => error.is_out_of_memory(),
            Self::Model(error) => error.is_out_of_memory(),
            Self::Objective(error) => error.is_out_of_memory(),
            Self::NoTeacherHead
            | Self::NoTeacherOutput
            | Self::NoLayers
            | Self::TokenPastVocabulary { .. }
            | Self::BadCheckpoint { .. } => false,
        }
    }
}
