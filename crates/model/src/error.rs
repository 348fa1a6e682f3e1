//! What can be wrong with a model's folder.

use std::{
    io,
    path::{Path, PathBuf},
};

use ddk_files::FileError;
use ddk_torch::TorchError;

/// An error of a model or its folder.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file that cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder without a model in it.
    #[error("{} holds no {missing}: expected a model folder in the Hugging Face format (config.json, \
             model.safetensors, tokenizer.json)", folder.display())]
    NotAModel {
        /// The folder.
        folder: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },
    /// Only pickled weights.
    #[error("{} holds pickled weights (pytorch_model.bin), which can run code when they are read; convert them: \
             AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)",
            .0.display())]
    Pickled(PathBuf),
    /// A file that does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A folder that would be lost if a model were written there.
    #[error("{} holds {found}, which ddk did not write: it is not replaced", folder.display())]
    NotReplaced {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        found: String,
    },
    /// A model that would be written over the one that it is made from.
    #[error("{} is the folder that the model or its tokenizer comes from: it is not replaced", .0.display())]
    Source(PathBuf),
    /// A model that this program does not build.
    #[error("{}: {what} `{value}` is not supported (supported: {supported})", path.display())]
    Unsupported {
        /// The configuration.
        path: PathBuf,
        /// Which of its settings.
        what: &'static str,
        /// The setting's value.
        value: String,
        /// What there is.
        supported: &'static str,
    },
    /// Tensors that do not fit the configuration; all of them.
    #[error("the tensors in {} do not fit its config.json:\n{}", folder.display(), problems.join("\n"))]
    Tensors {
        /// The model's folder.
        folder: PathBuf,
        /// One line for each.
        problems: Vec<String>,
    },
    /// A layer that the model has not.
    #[error("the model has no layer {number}: its layers are 1 to {count}")]
    NoLayer {
        /// What was asked for.
        number: usize,
        /// Layers of the model.
        count: usize,
    },
    /// A libtorch call.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl ModelError {
    /// Whether a device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch(error) if error.is_out_of_memory())
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let at = FileError::at(action, path);
        |source| at(source).into()
    }
}

impl From<tch::TchError> for ModelError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(error.into())
    }
}
