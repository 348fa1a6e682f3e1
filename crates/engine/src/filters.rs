//! TED's filters: linear maps through which a student layer is compared with a teacher layer.
//!
//! Liang et al., "Less is More: Task-aware Layer-wise Distillation for Language Model Compression", ICML 2023. A
//! layer pair has a student filter `[d_teacher, d_student]` and a teacher filter `[d_teacher, d_teacher]`. In the
//! first stage ([`crate::FilterStage`]), both models are frozen and each filter learns the task by itself. Its
//! output goes through the teacher's final norm and LM head into the cross-entropy. So the filter keeps what
//! matters for the task and drops the rest. In the second stage, the teacher's filters are frozen on the teacher's
//! worker. The student's filters keep training together with the student ([`crate::Student`]).

use std::path::PathBuf;

use ddk_model::{Model, safetensors::TensorFile};
use ddk_objective::{LayerInput, Positions, layer_loss};
use tch::{Device, Kind, Tensor};

use crate::{EngineError, options::StudentOptions, teacher::TeacherOutput};

/// Maximum number of pairs if none are named. Each pair adds the teacher's width for every position in the queues.
const PAIRS: usize = 4;

/// A student layer and the teacher layer that it learns to match, both counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPair {
    /// The student's layer.
    pub student: usize,
    /// The teacher's layer.
    pub teacher: usize,
}

impl LayerPair {
    /// Picks at most four pairs, spread evenly over both models. The last pair consists of both last layers.
    pub fn spread(student_layers: usize, teacher_layers: usize) -> Vec<Self> {
        let count = PAIRS.min(student_layers).min(teacher_layers);
        (1..=count)
            .map(|index| Self {
                student: (index * student_layers).div_ceil(count),
                teacher: (index * teacher_layers).div_ceil(count),
            })
            .collect()
    }

    /// Name of the student's filter in a file.
    pub fn of_student(&self) -> String {
        format!("filters.student.{}-{}", self.student, self.teacher)
    }

    /// Name of the teacher's filter in a file.
    pub fn of_teacher(&self) -> String {
        format!("filters.teacher.{}-{}", self.student, self.teacher)
    }
}

/// The layer pairs of a run, and the filters that the first stage trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters {
    /// The pairs of layers.
    pub pairs: Vec<LayerPair>,
    /// The file with the filters from the first stage; `None` in the first stage itself.
    pub learned: Option<PathBuf>,
}

impl Filters {
    /// The student layer of each pair.
    pub(crate) fn student_layers(&self) -> Vec<usize> {
        self.pairs.iter().map(|pair| pair.student).collect()
    }
}

/// Reads a filter from `file` to `device` in fp32.
pub(crate) fn read_filter(
    file: &TensorFile,
    name: &str,
    device: Device,
) -> Result<Tensor, EngineError> {
    let shape = file.shape(name).ok_or_else(|| EngineError::BadCheckpoint {
        file: file.path().to_owned(),
        reason: format!("it holds no `{name}`: is it of a run with the same layers?"),
    })?;
    Ok(file.tensor_on(name, &shape, device, Kind::Float)?)
}

/// A filter that trains together with the student.
#[derive(Debug)]
pub(crate) struct Filter {
    name: String,
    /// `[d_teacher, d_student]`.
    weight: Tensor,
    /// Accumulated over the step's micro-batches.
    pub(crate) gradient: Tensor,
}

/// Reads the student's filters from `file`; none if the options name none.
pub(crate) fn read_filters(
    model: &Model,
    options: &StudentOptions,
    file: &TensorFile,
) -> Result<Vec<Filter>, EngineError> {
    let pairs = options.filters.iter().flat_map(|filters| &filters.pairs);
    pairs
        .map(|pair| {
            let weight = read_filter(file, &pair.of_student(), model.device())?;
            Ok(Filter {
                name: pair.of_student(),
                gradient: weight.f_zeros_like()?,
                weight,
            })
        })
        .collect()
}

/// Everything that trains, in the optimizer's order.
pub(crate) fn trained(model: &Model, filters: &[Filter]) -> Vec<(String, Tensor)> {
    let copy = |name: &String, parameter: &Tensor| (name.clone(), parameter.shallow_clone());
    let of_model = model.parameters().iter().map(|(name, of)| copy(name, of));
    let of_filters = filters
        .iter()
        .map(|filter| copy(&filter.name, &filter.weight));
    of_model.chain(of_filters).collect()
}

/// Returns the distance between the student's and the teacher's layers after the filters, averaged over the layers,
/// and the gradients of the student's layers. Adds the gradients of the filters in place.
pub(crate) fn distance_of_layers(
    filters: &mut [Filter],
    layers: &[Tensor],
    teacher: Option<&TeacherOutput>,
    positions: &Positions<'_>,
    weight: f64,
) -> Result<(f64, Vec<Tensor>), EngineError> {
    if filters.is_empty() {
        return Ok((0.0, Vec::new()));
    }
    let targets = teacher.map_or(&[][..], |output| &output.layers);
    if targets.len() != layers.len() {
        return Err(EngineError::NoLayers);
    }
    let count = layers.len() as f64;
    let weight = weight / count;
    let (mut sum, mut gradients) = (0.0, Vec::with_capacity(layers.len()));
    for ((layer, target), filter) in layers.iter().zip(targets).zip(filters) {
        let input = LayerInput {
            hidden: &layer.detach().f_flatten(0, -2)?,
            filter: &filter.weight,
            target,
        };
        let done = layer_loss(&input, positions, weight, &mut filter.gradient)?;
        sum += done.sum / count;
        gradients.push(done.hidden_gradient.f_reshape(layer.size())?);
    }
    Ok((sum, gradients))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_spread_evenly_and_end_with_both_last_layers() {
        let spread = |student, teacher| -> Vec<(usize, usize)> {
            let pairs = LayerPair::spread(student, teacher);
            pairs
                .iter()
                .map(|pair| (pair.student, pair.teacher))
                .collect()
        };
        assert_eq!(spread(24, 40), [(6, 10), (12, 20), (18, 30), (24, 40)]);
        assert_eq!(spread(1, 2), [(1, 2)]);
        assert_eq!(spread(3, 4), [(1, 2), (2, 3), (3, 4)]);
    }
}
