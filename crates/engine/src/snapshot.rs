//! Copies weights and moments at a step boundary, writes them to a checkpoint and reads them back.

use std::path::Path;

use ddk_model::safetensors::{read_tensors, write_tensors};
use ddk_run::SnapshotFile;
use tch::Tensor;

use crate::{
    EngineError,
    adamw::{AdamW, MOMENTS, copy},
    sharding::Sharding,
};

/// The student's weights in a checkpoint, by parameter name. With TED, the file also holds the filters, which
/// exports leave out.
pub const WEIGHTS_FILE: &str = "weights.safetensors";
/// AdamW's moments in a checkpoint: `first.NAME` and `second.NAME`. `updates` in the metadata is the number of
/// updates made.
pub const MOMENTS_FILE: &str = "moments.safetensors";

/// Copies parameters and their moments into the files of a checkpoint, which any thread can write. With several
/// processes, all call this together. Only the first one gets files, and they are those of a single process.
pub(crate) fn snapshot(
    parameters: &[(String, Tensor)],
    optimizer: &AdamW,
    mut sharding: Option<&mut Sharding>,
) -> Result<Vec<SnapshotFile>, EngineError> {
    let _no_grad = tch::no_grad_guard();
    let mut moments = Vec::with_capacity(2 * parameters.len());
    for bucket in &optimizer.buckets {
        for (moment, own) in MOMENTS.iter().zip(&bucket.moments) {
            let whole = match &mut sharding {
                None => copy(own)?,
                Some(sharding) => sharding.whole(bucket, own)?,
            };
            if whole.numel() == 0 {
                continue;
            }
            for member in &bucket.members {
                let (name, parameter) = &parameters[member.parameter];
                let view = whole.f_narrow(0, member.at, member.numbers)?;
                moments.push((
                    format!("{moment}.{name}"),
                    view.f_view(&parameter.size()[..])?,
                ));
            }
        }
    }
    if sharding.is_some_and(|sharding| sharding.group.rank() > 0) {
        return Ok(Vec::new());
    }
    let mut weights = Vec::with_capacity(parameters.len());
    for (name, parameter) in parameters {
        weights.push((name.clone(), copy(parameter)?));
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

/// Reads the moments of `parameters` that this process owns into its optimizer.
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
    for bucket in &optimizer.buckets {
        for piece in bucket.own_pieces() {
            let (name, parameter) = &parameters[piece.parameter];
            for (moment, mut own) in MOMENTS.iter().zip(bucket.moments_of(piece)?) {
                let name = format!("{moment}.{name}");
                let whole = moments.tensor(&name, &parameter.size())?;
                own.f_copy_(&piece.of(&whole)?)?;
            }
        }
    }
    Ok(())
}
