//! Copies weights and moments at a step boundary, writes them to a checkpoint and reads them back.

use std::path::Path;

use ddk_model::safetensors::{read_tensors, write_tensors};
use ddk_run::SnapshotFile;
use tch::Tensor;

use crate::{
    EngineError,
    adamw::{AdamW, MOMENTS, copy},
};

/// The student's weights in a checkpoint, by parameter name. With TED, the file also holds the filters, which
/// exports leave out.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// AdamW's moments in a checkpoint: `first.NAME` and `second.NAME`. `updates` in the metadata is the number of
/// updates made.
pub const MOMENTS_FILE: &str = "moments.safetensors";

/// Copies parameters and their moments into the files of a checkpoint, which any thread can write.
pub(crate) fn snapshot(
    parameters: &[(String, Tensor)],
    optimizer: &AdamW,
) -> Result<Vec<SnapshotFile>, EngineError> {
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
    let updates = optimizer.updates.to_string();
    Ok(vec![
        SnapshotFile::new(WEIGHTS_FILE, move |out| write_tensors(&weights, &[], out)),
        SnapshotFile::new(MOMENTS_FILE, move |out| {
            write_tensors(&moments, &[("updates", &updates)], out)
        }),
    ])
}

/// Reads the moments of `parameters` into their optimizer.
pub(crate) fn read_moments(
    path: &Path,
    optimizer: &mut AdamW,
    parameters: &[(String, Tensor)],
) -> Result<(), EngineError> {
    let moments = read_tensors(path)?;
    optimizer.updates = moments
        .metadata("updates")
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| EngineError::BadCheckpoint {
            file: path.to_owned(),
            reason: "its metadata has no number `updates`".to_owned(),
        })?;
    for bucket in &mut optimizer.buckets {
        for (moment, flat) in MOMENTS.iter().zip(&mut bucket.moments) {
            for (&index, view) in bucket.members.iter().zip(&mut flat.views) {
                let name = format!("{moment}.{}", parameters[index].0);
                view.f_copy_(&moments.tensor(&name, &view.size())?)?;
            }
        }
    }
    Ok(())
}
