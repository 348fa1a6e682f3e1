//! Errors on a worker.

use std::path::PathBuf;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Loading a model or its forward pass failed.
    #[error(transparent)]
    Model(#[from] ddk_model::ModelError),
    /// The LM head with its loss failed.
    #[error(transparent)]
    Objective(#[from] ddk_objective::ObjectiveError),
    /// The exchange with the other processes failed.
    #[error(transparent)]
    Distributed(#[from] ddk_distributed::DistributedError),
    /// Another process trains a model of another shape.
    #[error(
        "rank {rank} trains other parameters than this rank: give all ranks the same configuration and models"
    )]
    OtherModel {
        /// Its rank.
        rank: usize,
    },
    /// A libtorch call failed.
    #[error(transparent)]
    Torch(#[from] ddk_torch::TorchError),
    /// A labeled batch reached a student that was built without the teacher's LM head.
    #[error("the batch carries a teacher's hidden states, but the student has no teacher head")]
    NoTeacherHead,
    /// The caller asked for the excess over the teacher's loss, but the batch carries no output of a teacher.
    #[error(
        "the excess over the teacher's loss is wanted, but the batch carries no hidden states of it"
    )]
    NoTeacherOutput,
    /// A batch lacks the layer outputs that the filters need.
    #[error("the batch does not carry the teacher's layers that the filters are for")]
    NoLayers,
    /// A sequence was made with another tokenizer.
    #[error(
        "token id {token} is past the vocabulary of {vocabulary}: the text was tokenized with another tokenizer"
    )]
    TokenPastVocabulary {
        /// The token id.
        token: u32,
        /// Number of ids in the vocabulary.
        vocabulary: i64,
    },
    /// A label is not as long as its sequence.
    #[error(
        "a label of the teacher has {found} bytes, expected {expected}: it belongs to another sequence or model"
    )]
    WrongLabel {
        /// Its bytes.
        found: usize,
        /// The bytes of a label of its sequence.
        expected: usize,
    },
    /// A file of a checkpoint passed verification but has the wrong content.
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
            _ => false,
        }
    }
}

impl From<tch::TchError> for EngineError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}
