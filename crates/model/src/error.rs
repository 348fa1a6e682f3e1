//! Errors of models and their folders.

use std::{
    io,
    path::{Path, PathBuf},
};

use ddk_files::FileError;
use ddk_torch::TorchError;

/// Says what a folder lacks.
fn lacking(folder: &Path, missing: &str) -> String {
    let shown = folder.display();
    if folder.is_dir() {
        format!("there is no {missing} in {shown}")
    } else {
        format!("there is no folder {shown}")
    }
}

/// An error of a model or its folder.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The folder holds no model.
    #[error(
        "{}: expected a model folder in the Hugging Face format (config.json, model.safetensors, \
             tokenizer.json), or the name of a model on the Hugging Face Hub",
        lacking(folder, missing)
    )]
    NotAModel {
        /// The folder.
        folder: PathBuf,
        /// The missing file.
        missing: &'static str,
    },
    /// The folder holds only pickled weights.
    #[error("{} contains pickled weights (pytorch_model.bin), which can run code when they are read; convert them: \
             AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder, safe_serialization=True)",
            .0.display())]
    Pickled(PathBuf),
    /// A file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The folder holds something that would be lost if a model were written there.
    #[error("{} contains {found}, which ddk did not write: it is not replaced", folder.display())]
    NotReplaced {
        /// The folder.
        folder: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The model would overwrite the folder that it comes from.
    #[error("{} is the folder that the model or its tokenizer comes from: it is not replaced", .0.display())]
    Source(PathBuf),
    /// This program does not support the model.
    #[error("{}: {what} `{value}` is not supported (supported: {supported})", path.display())]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The setting.
        what: &'static str,
        /// The setting's value.
        value: String,
        /// The supported values.
        supported: String,
    },
    /// Tensors do not fit the configuration. Lists all of them.
    #[error("the tensors in {} do not fit its config.json:\n{}", folder.display(), problems.join("\n"))]
    Tensors {
        /// The model's folder.
        folder: PathBuf,
        /// One line per tensor.
        problems: Vec<String>,
    },
    /// The model has no such layer.
    #[error("the model has no layer {number}: its layers are 1 to {count}")]
    NoLayer {
        /// The requested layer.
        number: usize,
        /// Number of layers in the model.
        count: usize,
    },
    /// A libtorch call failed.
    #[error(transparent)]
    Torch(#[from] TorchError),
}

impl ModelError {
    /// Whether a device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Torch(error) if error.is_out_of_memory())
    }

    /// For a file that does not hold what it should.
    pub(crate) fn malformed(path: &Path, reason: impl ToString) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
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
