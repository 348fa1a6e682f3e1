//! The initial student: the given model, or one that `ddk shrink` makes from the teacher.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use ddk_jobs::{hint::Hint, hub, planned};
use ddk_model::ModelConfig;

use crate::cli;

/// The initial student of a configuration.
pub(super) struct Student {
    /// Its folder, or its name on the Hub.
    pub(super) model: PathBuf,
    pub(super) config: ModelConfig,
    /// The folder of its tokenizer.
    pub(super) tokenizer: PathBuf,
    /// The layers that `ddk shrink` must keep, if it makes this student.
    pub(super) shrunk_to: Option<usize>,
}

impl Student {
    /// Reads the student of `--student`. Without one, plans a student with half of the layers of the teacher in
    /// `folder`.
    pub(super) fn of(args: &cli::Init, teacher: &ModelConfig, folder: PathBuf) -> Result<Self> {
        if let Some(model) = &args.student {
            let folder = hub::model_without_weights(model)?;
            return Ok(Self {
                model: model.clone(),
                config: ModelConfig::read(&folder).usage()?,
                tokenizer: folder,
                shrunk_to: None,
            });
        }
        let layers = usize::try_from(teacher.layers())?;
        if layers < 2 || !args.teacher_server.is_empty() {
            return Err(anyhow!("--student is missing"))
                .hint(
                    "without it, `ddk init` plans a student with half of the teacher's layers. This needs the \
                     teacher's weights, and at least 2 layers",
                )
                .usage();
        }
        let kept = planned::kept(layers);
        let name = super::names::domain_name(&hub::short_name(&args.teacher));
        Ok(Self {
            model: planned::folder(&name, kept),
            config: teacher.with_layers(&(0..kept).collect::<Vec<_>>())?,
            tokenizer: folder,
            shrunk_to: Some(kept),
        })
    }

    /// The command that makes it, if it does not exist yet.
    pub(super) fn command(&self, args: &cli::Init) -> Option<String> {
        let (out, layers) = (args.out.display(), self.shrunk_to?);
        Some(format!("ddk shrink {out} --layers {layers}"))
    }
}
