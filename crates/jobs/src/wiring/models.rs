//! Loads models from their folders, with the devices and dtypes of the settings.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use ddk_engine::{
    EngineError, FilterStage, Filters, FlopCounter, SequenceLosses, Student, StudentOptions,
    Teacher, Trainable,
};
use ddk_model::{LmHead, Model, ModelConfig, ModelError, Placement, SharedWeights};
use ddk_settings::{Dtype, MixturePolicy, Settings};
use ddk_torch::{DeviceError, TimeSlice, parse_device};
use tch::{Device, Kind};

use crate::{config::required, objective};

/// Name and text of a file in every checkpoint beside the student's own: the run's inputs, or the versions that
/// wrote it.
pub type Record = (&'static str, Arc<[u8]>);

/// What a student starts from.
pub struct StudentStart {
    pub options: StudentOptions,
    pub row_losses: SequenceLosses,
    /// The checkpoint to resume from. Default: the student's folder.
    pub checkpoint: Option<PathBuf>,
    pub turns: TimeSlice,
}

/// Whether the loss or the mixture uses the teacher's output for each batch. If not, the teacher makes no
/// forward pass.
pub fn needs_teacher_output(settings: &Settings) -> bool {
    objective::of_settings(&settings.objective).needs_teacher_output()
        || settings.mixture.policy == MixturePolicy::DoremiProxy
}

/// The folders of both models.
#[derive(Debug, Clone)]
pub struct ModelFolders {
    /// The student's own folder if there is no teacher.
    pub teacher: PathBuf,
    pub student: PathBuf,
    /// The teacher's weights. The workers and the student's side share one copy per device.
    pub frozen: Arc<SharedWeights>,
    /// False if the student learns from the text alone.
    pub has_teacher: bool,
}

impl ModelFolders {
    pub fn new(teacher: PathBuf, student: PathBuf) -> Self {
        Self {
            frozen: Arc::new(SharedWeights::of(&teacher)),
            teacher,
            student,
            has_teacher: true,
        }
    }

    /// Returns the folders that the settings name.
    ///
    /// # Errors
    /// If `teacher.model` or `student.model` is not set.
    pub fn of(settings: &Settings) -> Result<Self> {
        let teacher = required(settings.teacher.model.clone(), "teacher.model")?;
        let student = required(settings.student.model.clone(), "student.model")?;
        Ok(Self::new(teacher, student))
    }

    /// Reads the configurations of teacher and student.
    ///
    /// # Errors
    /// If a `config.json` cannot be read or describes a model that is not supported.
    pub fn configs(&self) -> Result<(ModelConfig, ModelConfig), ModelError> {
        let teacher = ModelConfig::read(&self.teacher)?;
        Ok((teacher, ModelConfig::read(&self.student)?))
    }

    /// Returns the folders for a student that learns from the text alone.
    pub fn without_teacher(student: PathBuf) -> Self {
        Self {
            has_teacher: false,
            ..Self::new(student.clone(), student)
        }
    }
}

/// Returns a counter of the FLOPs that these models compute.
///
/// # Errors
/// If a `config.json` cannot be read or describes a model that is not supported.
pub fn flop_counter(
    folders: &ModelFolders,
    options: &StudentOptions,
) -> Result<FlopCounter, ModelError> {
    let (teacher, student) = folders.configs()?;
    let (vocabulary, recompute) = (options.vocabulary.unsigned_abs(), options.recompute);
    let flops = FlopCounter::new(&teacher, &student, vocabulary, recompute);
    Ok(flops.with_filters(options.filters.as_ref()))
}

/// Builds what the student's worker trains: the filters in TED's first stage, otherwise the student.
pub(super) fn build_learner(
    settings: &Settings,
    folders: &ModelFolders,
    start: StudentStart,
) -> Result<Box<dyn Trainable>> {
    let (options, checkpoint) = (start.options, start.checkpoint.as_deref());
    let to_learn = options.filters.clone();
    let Some(filters) = to_learn.filter(|filters| filters.learned.is_none()) else {
        let mut student = build_student(settings, folders, options, checkpoint)?;
        student.set_row_losses(start.row_losses);
        return Ok(Box::new(student));
    };
    let model = Model::load(&folders.student, &student_placement(&settings.student)?)?;
    let kind = kind(settings.teacher.dtype);
    let output = LmHead::load(&folders.teacher, model.device(), kind)?;
    Ok(Box::new(match checkpoint {
        Some(checkpoint) => FilterStage::restore(model, options, filters, output, checkpoint)?,
        None => FilterStage::new(model, options, filters, output)?,
    }))
}

/// Builds a student, with its teacher's LM head if the teacher's output is needed.
///
/// # Errors
/// If `student.device` cannot be used, if a model cannot be loaded, or if the checkpoint does not match.
pub fn build_student(
    settings: &Settings,
    folders: &ModelFolders,
    options: StudentOptions,
    checkpoint: Option<&Path>,
) -> Result<Student> {
    let model = Model::load(&folders.student, &student_placement(&settings.student)?)?;
    let kind = kind(settings.teacher.dtype);
    let head = needs_teacher_output(settings).then(|| folders.frozen.head(model.device(), kind));
    let head = head.transpose()?;
    Ok(match checkpoint {
        Some(checkpoint) => Student::restore(model, options, head, checkpoint)?,
        None => Student::new(model, options, head)?,
    })
}

/// Builds a teacher that sends what the student's loss needs.
///
/// # Errors
/// If the file of learned filters cannot be read or lacks a filter.
pub fn build_teacher(
    model: Model,
    student_device: Device,
    filters: Option<&Filters>,
    batch_rows: Option<u64>,
) -> Result<Teacher, EngineError> {
    let teacher = Teacher::new(model, student_device);
    let teacher = teacher.with_batch_rows(batch_rows.map_or(usize::MAX, |rows| rows as usize));
    match filters {
        Some(filters) => teacher.with_filters(filters),
        None => Ok(teacher),
    }
}

/// Returns the placement of a worker's teacher. Its weights never change, so they have the dtype of its matmuls.
///
/// # Errors
/// If one of the worker's devices cannot be used.
pub fn teacher_placement(
    teacher: &ddk_settings::Teacher,
    replica: usize,
) -> Result<Placement, DeviceError> {
    let devices = teacher.devices_of(replica).into_iter();
    Ok(Placement {
        devices: devices.map(parse_device).collect::<Result<_, _>>()?,
        weights: kind(teacher.dtype),
        compute: kind(teacher.dtype),
    })
}

/// Returns the placement of the student. The optimizer updates its weights, so they are fp32 whatever the dtype of
/// its matmuls.
///
/// # Errors
/// If `student.device` cannot be used.
pub fn student_placement(student: &ddk_settings::Student) -> Result<Placement, DeviceError> {
    Ok(Placement {
        devices: vec![parse_device(&student.device)?],
        weights: Kind::Float,
        compute: kind(student.dtype),
    })
}

/// Returns libtorch's name for a dtype.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Fp32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    }
}
