//! Builds models from their folders, with the devices and dtypes of the settings.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Result, bail};
use ddk_engine::{
    FilterStage, FlopCounter, LabelFormat, Student, StudentOptions, Teacher, Trainable,
};
use ddk_mixture::Needs;
use ddk_model::{LmHead, Model, ModelConfig, ModelError, Placement, SharedWeights, Weights};
use ddk_objective::Detail;
use ddk_settings::{Dtype, Settings};
use ddk_torch::{ComputeContext, DeviceError, TimeSlice, parse_device};
use tch::{Device, Kind, Tensor};

use crate::{config::required, train::options};

/// Whether the loss or the mixture uses the teacher's output for each batch. If not, the teacher makes no
/// forward pass.
pub fn needs_teacher_output(settings: &Settings) -> bool {
    options::objective(&settings.objective).needs_teacher_output()
        || settings.mixture.policy.needs() == Needs::Excess
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
    /// Whether servers compute the teacher.
    pub is_served: bool,
    /// Whether DDK may use nothing of the teacher's folder but the LM head: the teacher is served, or the folder holds
    /// no more and the cache has the rest.
    pub head_only: bool,
}

impl ModelFolders {
    pub fn new(teacher: PathBuf, student: PathBuf) -> Self {
        Self {
            frozen: Arc::new(SharedWeights::of(&teacher)),
            teacher,
            student,
            has_teacher: true,
            is_served: false,
            head_only: false,
        }
    }

    /// Returns the folders that the settings name.
    ///
    /// # Errors
    /// If `teacher.model` or `student.model` is not set.
    pub fn of(settings: &Settings) -> Result<Self> {
        let teacher = required(settings.teacher.model.clone(), "teacher.model")?;
        let student = required(settings.student.model.clone(), "student.model")?;
        let mut folders = Self::new(settings.local(&teacher), settings.local(&student));
        folders.is_served = settings.teacher.is_served();
        let is_whole = || -> Result<(), ModelError> {
            Model::check(
                &folders.teacher_config()?,
                &Weights::open(&folders.teacher)?,
            )
        };
        folders.head_only =
            folders.is_served || (settings.teacher.cache.dir.is_some() && is_whole().is_err());
        Ok(folders)
    }

    /// Reads the configurations of teacher and student.
    ///
    /// # Errors
    /// If a `config.json` cannot be read or describes a model that is not supported.
    pub fn configs(&self) -> Result<(ModelConfig, ModelConfig), ModelError> {
        Ok((self.teacher_config()?, ModelConfig::read(&self.student)?))
    }

    /// Reads the configuration of the teacher.
    ///
    /// # Errors
    /// As for [`Self::configs`].
    pub fn teacher_config(&self) -> Result<ModelConfig, ModelError> {
        if self.is_served {
            ModelConfig::read_served(&self.teacher)
        } else {
            ModelConfig::read(&self.teacher)
        }
    }

    /// Loads the teacher's LM head.
    ///
    /// # Errors
    /// If the folder cannot be read or lacks the LM head, or if libtorch fails.
    pub fn head(&self, device: Device, kind: Kind) -> Result<Tensor, ModelError> {
        self.frozen.head(&self.teacher_config()?, device, kind)
    }

    /// Returns the folders for a student that learns from the text alone.
    pub fn without_teacher(student: PathBuf) -> Self {
        Self {
            has_teacher: false,
            ..Self::new(student.clone(), student)
        }
    }
}

/// Both models of a configuration, and how the student is trained.
#[derive(Clone)]
pub struct Models {
    pub settings: Settings,
    pub folders: ModelFolders,
    pub options: StudentOptions,
}

impl Models {
    /// Whether batches need the teacher's output.
    pub fn asks_teacher(&self) -> bool {
        needs_teacher_output(&self.settings)
    }

    /// Returns a counter of the FLOPs that these models compute.
    ///
    /// # Errors
    /// If a `config.json` cannot be read or describes a model that is not supported.
    pub fn flop_counter(&self) -> Result<FlopCounter, ModelError> {
        let (teacher, student) = self.folders.configs()?;
        let options = &self.options;
        let vocabulary = options.vocabulary.unsigned_abs();
        let flops = FlopCounter::new(&teacher, &student, vocabulary, options.recompute);
        Ok(flops.with_filters(options.filters.as_ref()))
    }

    /// Turns the calling thread into a teacher's worker, which sends its results to the student's device.
    ///
    /// # Errors
    /// If a device cannot be used.
    pub fn teacher_context(&self, replica: usize, turns: &TimeSlice) -> Result<ComputeContext> {
        let teacher = &self.settings.teacher;
        let mut devices = if teacher.is_served() {
            Vec::new()
        } else {
            teacher_placement(teacher, replica)?.devices
        };
        devices.push(parse_device(&self.settings.student.device)?);
        let context = ComputeContext::beside_others(teacher.threads, &devices, turns);
        Ok(context?)
    }

    /// Turns the calling thread into the student's worker.
    ///
    /// # Errors
    /// If `student.device` cannot be used.
    pub fn student_context(&self, turns: &TimeSlice) -> Result<ComputeContext> {
        let student = &self.settings.student;
        let devices = [parse_device(&student.device)?];
        let context = ComputeContext::beside_others(student.threads, &devices, turns);
        Ok(context?)
    }

    /// Builds the teacher of a worker, which sends what the student's loss needs.
    ///
    /// # Errors
    /// If a device cannot be used, if the model cannot be loaded, or if the file of learned filters cannot be read or
    /// lacks a filter.
    pub fn teacher(&self, replica: usize) -> Result<Teacher> {
        let settings = &self.settings.teacher;
        if self.folders.head_only {
            let folder = self.folders.teacher.display();
            bail!(
                "the cache lacks an output of the teacher, and {folder} holds only its LM head: run `ddk label` with \
                 this configuration on a machine that has the whole teacher"
            );
        }
        let placement = teacher_placement(settings, replica)?;
        let model = self.folders.frozen.model(&placement)?;
        let rows = settings.batch_size.map_or(usize::MAX, |rows| rows as usize);
        let teacher = Teacher::new(model, parse_device(&self.settings.student.device)?);
        let teacher = teacher.with_batch_rows(rows);
        match &self.options.filters {
            Some(filters) => Ok(teacher.with_filters(filters)?),
            None => Ok(teacher),
        }
    }

    /// Loads the teacher's LM head to the student's device.
    ///
    /// # Errors
    /// As for [`ModelFolders::head`], or if `student.device` cannot be used.
    pub fn teacher_head(&self) -> Result<Tensor> {
        let device = parse_device(&self.settings.student.device)?;
        Ok(self
            .folders
            .head(device, kind(self.settings.teacher.dtype))?)
    }

    /// Returns the form of the teacher's labels.
    ///
    /// # Errors
    /// If the teacher's `config.json` cannot be read.
    pub fn label_format(&self) -> Result<LabelFormat, ModelError> {
        Ok(LabelFormat {
            hidden_size: self.folders.teacher_config()?.hidden_size(),
            kind: kind(self.settings.teacher.dtype),
        })
    }

    /// Builds the first worker's teacher, if its output is needed.
    ///
    /// # Errors
    /// As for [`Self::teacher`].
    pub fn asked_teacher(&self) -> Result<Option<Teacher>> {
        self.asks_teacher().then(|| self.teacher(0)).transpose()
    }

    /// Builds the student, with its teacher's LM head if the teacher's output is needed.
    ///
    /// # Errors
    /// If `student.device` cannot be used, if a model cannot be loaded, or if the checkpoint does not match.
    pub fn student(&self, checkpoint: Option<&Path>) -> Result<Student> {
        let (model, kind) = (self.initial()?, kind(self.settings.teacher.dtype));
        let head = || self.folders.head(model.device(), kind);
        let head = self.asks_teacher().then(head).transpose()?;
        let options = self.options.clone();
        Ok(Student::new(model, options, head, checkpoint)?)
    }

    /// Builds what the student's worker trains: the filters in TED's first stage, otherwise the student.
    pub(super) fn learner(
        &self,
        checkpoint: Option<&Path>,
        row_losses: Detail,
    ) -> Result<Box<dyn Trainable>> {
        let options = self.options.clone();
        let to_learn = options.filters.clone();
        let Some(filters) = to_learn.filter(|filters| filters.learned.is_none()) else {
            let mut student = self.student(checkpoint)?;
            student.set_row_losses(row_losses);
            return Ok(Box::new(student));
        };
        let (model, kind) = (self.initial()?, kind(self.settings.teacher.dtype));
        let output = LmHead::load(&self.folders.teacher, model.device(), kind)?;
        let stage = FilterStage::new(model, options, filters, output, checkpoint)?;
        Ok(Box::new(stage))
    }

    /// Loads the model that the student starts from.
    pub(super) fn initial(&self) -> Result<Model> {
        let placement = student_placement(&self.settings.student)?;
        Ok(Model::load(&self.folders.student, &placement)?)
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
