//! Copies weights and moments at a step boundary, writes them to a checkpoint and reads them back.

use std::path::Path;

use ddk_model::{
    Model,
    safetensors::{read_tensors, write_tensors},
};
use ddk_run::SnapshotFile;
use ddk_torch::TorchError;
use tch::Tensor;

use crate::{
    EngineError,
    adamw::{AdamW, AdamWOptions, MOMENTS, copy},
    filters::{read_filters, trained},
    options::StudentOptions,
    student::Student,
};

/// The student's weights in a checkpoint, by parameter name. With TED, the file also holds the filters, which
/// exports leave out.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// AdamW's moments in a checkpoint: `first.NAME` and `second.NAME`. `updates` in the metadata is the number of
/// updates made.
pub const MOMENTS_FILE: &str = "moments.safetensors";

/// A copy of a student's state, detached from training.
#[derive(Debug)]
pub struct Snapshot {
    weights: Vec<(String, Tensor)>,
    moments: Vec<(String, Tensor)>,
    updates: u64,
}

impl Snapshot {
    pub(crate) fn take(
        parameters: &[(String, Tensor)],
        optimizer: &AdamW,
    ) -> Result<Self, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let mut weights = Vec::with_capacity(parameters.len());
        for (name, parameter) in parameters {
            weights.push((name.clone(), copy(parameter)?));
        }
        let mut moments = Vec::with_capacity(2 * parameters.len());
        for bucket in &optimizer.buckets {
            for (moment, flat) in MOMENTS.iter().zip(&bucket.moments) {
                for (&index, view) in bucket.members.iter().zip(flat.copy()?.views) {
                    moments.push((format!("{moment}.{}", parameters[index].0), view));
                }
            }
        }
        moments.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self {
            weights,
            moments,
            updates: optimizer.updates,
        })
    }

    /// Returns the files of a checkpoint, which any thread can write.
    pub fn into_files(self) -> Vec<SnapshotFile> {
        let Self {
            weights,
            moments,
            updates,
        } = self;
        vec![
            SnapshotFile::new(WEIGHTS_FILE, move |out| write_tensors(&weights, &[], out)),
            SnapshotFile::new(MOMENTS_FILE, move |out| {
                write_tensors(&moments, &[("updates", &updates.to_string())], out)
            }),
        ]
    }
}

impl Student {
    /// Resumes from a checkpoint's files. `model` provides the architecture; the checkpoint replaces its weights.
    ///
    /// # Errors
    /// If the checkpoint's weights, filters or moments cannot be read or do not match `model` and `options`.
    pub fn restore(
        mut model: Model,
        options: StudentOptions,
        teacher_head: Option<Tensor>,
        checkpoint: &Path,
    ) -> Result<Self, EngineError> {
        model.set_trainable(true);
        let weights = read_tensors(&checkpoint.join(WEIGHTS_FILE))?;
        model.replace_weights(&weights)?;
        let filters = read_filters(&model, &options, &weights)?;
        let parameters = trained(&model, &filters);
        let moments = checkpoint.join(MOMENTS_FILE);
        let optimizer = read_moments(&moments, options.adamw, &parameters)?;
        Self::with_optimizer(model, optimizer, options, teacher_head, filters)
    }
}

/// Reads the optimizer state of `parameters`.
pub(crate) fn read_moments(
    path: &Path,
    options: AdamWOptions,
    parameters: &[(String, Tensor)],
) -> Result<AdamW, EngineError> {
    let moments = read_tensors(path)?;
    let updates = moments
        .metadata("updates")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| EngineError::BadCheckpoint {
            file: path.to_owned(),
            reason: "its metadata has no number `updates`".to_owned(),
        })?;
    let mut optimizer = AdamW::new(options, parameters)?;
    optimizer.updates = updates;
    for bucket in &mut optimizer.buckets {
        for (moment, flat) in MOMENTS.iter().zip(&mut bucket.moments) {
            for (&index, view) in bucket.members.iter().zip(&mut flat.views) {
                let name = format!("{moment}.{}", parameters[index].0);
                let saved = moments.tensor(&name, &view.size())?;
                view.f_copy_(&saved).map_err(TorchError::from)?;
            }
        }
    }
    Ok(optimizer)
}
