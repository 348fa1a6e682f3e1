//! Joins the ports of `ddk-actors` to the engine and the corpus.

use std::{path::PathBuf, sync::Arc, time::Instant};

use ddk_actors::{
    Live, MicroBatch, MicroLoss, PortError, RowLoss, Rows, Update,
    ports::{BatcherHook, RowsFactory, StudentFactory, TeacherFactory},
};
use ddk_corpus::{Drawn, PreparedDomain, RowReader};
use ddk_engine::{
    Document, EngineError, FilterStage, Filters, FlopCounter, Learner, RowLosses, RowSums,
    Sequence, Signal, Student, StudentOptions, Teacher, UpdateReport, domain_perplexities,
};
use ddk_model::{Frozen, Model, ModelConfig, ModelError, Output, Placement};
use ddk_run::NamedFile;
use ddk_settings::{Dtype, MixturePolicy, Settings};
use ddk_torch::{DeviceError, Lane, TorchError, Turns, give_freed_memory_back, parse_device};
use tch::{Device, Kind, Tensor};

use crate::{
    faults::{Faults, Place},
    objective,
    rows::sequence,
};

/// The validation documents of all domains, shared by the lanes.
pub type Validation = Arc<Vec<Vec<Document>>>;

/// How perplexities are measured.
#[derive(Clone)]
pub struct Evaluation {
    pub validation: Validation,
    pub batch_rows: usize,
    pub vocabulary: i64,
    pub chunk: i64,
}

impl Evaluation {
    pub fn perplexities(
        &self,
        model: &Model,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f64>>, EngineError> {
        domain_perplexities(
            model,
            &self.validation,
            self.batch_rows,
            self.vocabulary,
            self.chunk,
            cancelled,
        )
    }
}

/// A teacher on its lane.
pub struct TeacherPort {
    faults: Arc<Faults>,
    lane: Lane,
    /// Absent where nothing is asked of it.
    teacher: Option<Teacher>,
    /// Whether batches are labelled.
    labels: bool,
    turns: Turns,
    evaluation: Evaluation,
    copies: Copies,
}

/// Evaluates copies of the student on a teacher's lane.
struct Copies {
    folder: PathBuf,
    placement: Placement,
    /// Built for the first copy.
    model: Option<Model>,
    /// Evaluations made so far.
    made: u64,
}

/// Whether the teacher says something about each batch. Where neither the loss nor the mixture asks for it, no forward is made.
pub fn labels(settings: &Settings) -> bool {
    objective::of_settings(&settings.objective).needs_teacher()
        || settings.mixture.policy == MixturePolicy::DoremiProxy
}

/// A file that every checkpoint holds beside the student's own: what the run is made from, and what wrote it.
pub type Record = (&'static str, Arc<[u8]>);

/// The student on its lane.
pub struct StudentPort {
    records: Vec<Record>,
    live: Arc<Live>,
    faults: Arc<Faults>,
    lane: Lane,
    turns: Turns,
    student: Box<dyn Learner>,
    evaluation: Evaluation,
    flops: FlopCounter,
    /// Evaluations made so far.
    evaluations: u64,
}

/// Builds teachers on their threads; `known`: their perplexities are. A lane that neither labels nor measures holds no model.
pub fn teachers(
    settings: &Settings,
    folders: ModelFolders,
    evaluation: Evaluation,
    known: bool,
    filters: Option<Filters>,
    turns: Turns,
    faults: Arc<Faults>,
) -> TeacherFactory<TeacherPort> {
    let (teacher, student) = (settings.teacher.clone(), settings.student.clone());
    let labels = labels(settings);
    Arc::new(move |number| {
        let lane = Lane::enter(teacher.threads);
        let build = || -> Result<Teacher, PortError> {
            let student_device = parse_device(&student.device).map_err(device_error)?;
            let placement = teacher_placement(&teacher).map_err(device_error)?;
            let model = folders.frozen.model(&placement).map_err(model_error)?;
            build_teacher(model, student_device, filters.as_ref())
        };
        let measures = number == 0 && !known;
        Ok(TeacherPort {
            faults: Arc::clone(&faults),
            lane,
            teacher: (labels || measures).then(build).transpose()?,
            labels,
            turns: turns.clone(),
            evaluation: evaluation.clone(),
            copies: Copies {
                folder: folders.student.clone(),
                placement: student_placement(&student).map_err(device_error)?,
                model: None,
                made: 0,
            },
        })
    })
}

/// How a student begins.
pub struct StudentStart {
    pub options: StudentOptions,
    pub row_losses: RowLosses,
    /// The checkpoint that it goes on from; its folder where absent.
    pub checkpoint: Option<PathBuf>,
    pub turns: Turns,
}

/// Builds the student on its thread.
pub fn student(
    settings: &Settings,
    folders: ModelFolders,
    start: StudentStart,
    evaluation: Evaluation,
    records: Vec<Record>,
    live: Arc<Live>,
    faults: Arc<Faults>,
) -> StudentFactory<StudentPort> {
    let settings = settings.clone();
    Box::new(move || {
        let lane = Lane::enter(settings.student.threads);
        let flops = flop_counter(&folders, &start.options).map_err(model_error)?;
        let turns = start.turns.clone();
        let learns_filters = |filters: &Filters| filters.learnt.is_none();
        let student: Box<dyn Learner> = match start.options.filters.clone() {
            Some(filters) if learns_filters(&filters) => {
                Box::new(build_filters(&settings, &folders, filters, start)?)
            }
            _ => {
                let (options, checkpoint) = (start.options, start.checkpoint);
                let mut student = build_student(&settings, &folders, options, checkpoint)?;
                student.set_row_losses(start.row_losses);
                Box::new(student)
            }
        };
        Ok(StudentPort {
            records,
            live,
            faults,
            lane,
            turns,
            student,
            evaluation,
            flops,
            evaluations: 0,
        })
    })
}

/// Where both models come from.
#[derive(Debug, Clone)]
pub struct ModelFolders {
    pub teacher: PathBuf,
    pub student: PathBuf,
    /// The teacher's weights: lanes and the student's side have them in memory once a device.
    pub frozen: Arc<Frozen>,
}

impl ModelFolders {
    pub fn new(teacher: PathBuf, student: PathBuf) -> Self {
        Self {
            frozen: Arc::new(Frozen::of(&teacher)),
            teacher,
            student,
        }
    }
}

/// Counts what these models compute.
pub fn flop_counter(
    folders: &ModelFolders,
    options: &StudentOptions,
) -> Result<FlopCounter, ModelError> {
    Ok(FlopCounter::new(
        &ModelConfig::read(&folders.teacher)?,
        &ModelConfig::read(&folders.student)?,
        options.vocabulary.unsigned_abs(),
        options.recompute,
    )
    .with_filters(options.filters.as_ref()))
}

/// A student, with its teacher's output matrix beside it where that is used.
pub fn build_student(
    settings: &Settings,
    folders: &ModelFolders,
    options: StudentOptions,
    checkpoint: Option<PathBuf>,
) -> Result<Student, PortError> {
    let placement = student_placement(&settings.student).map_err(device_error)?;
    let model = Model::load(&folders.student, &placement).map_err(model_error)?;
    let kind = kind(settings.teacher.dtype);
    let head = labels(settings)
        .then(|| folders.frozen.head(model.device(), kind))
        .transpose()
        .map_err(model_error)?;
    match checkpoint {
        Some(checkpoint) => Student::restore(model, options, head, &checkpoint),
        None => Student::new(model, options, head),
    }
    .map_err(engine_error)
}

/// A teacher that sends what the student's loss asks for.
pub fn build_teacher(
    model: Model,
    student_device: Device,
    filters: Option<&Filters>,
) -> Result<Teacher, PortError> {
    let teacher = Teacher::new(model, student_device);
    match filters {
        Some(filters) => teacher.with_filters(filters).map_err(engine_error),
        None => Ok(teacher),
    }
}

/// TED's first stage: the frozen student, and the end of the teacher beside it.
fn build_filters(
    settings: &Settings,
    folders: &ModelFolders,
    filters: Filters,
    start: StudentStart,
) -> Result<FilterStage, PortError> {
    let placement = student_placement(&settings.student).map_err(device_error)?;
    let model = Model::load(&folders.student, &placement).map_err(model_error)?;
    let kind = kind(settings.teacher.dtype);
    let output = Output::load(&folders.teacher, model.device(), kind).map_err(model_error)?;
    match start.checkpoint {
        Some(checkpoint) => {
            FilterStage::restore(model, start.options, filters, output, &checkpoint)
        }
        None => FilterStage::new(model, start.options, filters, output),
    }
    .map_err(engine_error)
}

/// A teacher's weights are in the dtype of its products: they never change.
pub fn teacher_placement(teacher: &ddk_settings::Teacher) -> Result<Placement, DeviceError> {
    let devices = teacher.devices.iter().map(|device| parse_device(device));
    Ok(Placement {
        devices: devices.collect::<Result<_, _>>()?,
        weights: kind(teacher.dtype),
        compute: kind(teacher.dtype),
    })
}

/// A student's weights are the optimizer's: in fp32, whatever its products are in.
pub fn student_placement(student: &ddk_settings::Student) -> Result<Placement, DeviceError> {
    Ok(Placement {
        devices: vec![parse_device(&student.device)?],
        weights: Kind::Float,
        compute: kind(student.dtype),
    })
}

/// libtorch's name for a dtype.
pub fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Fp32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    }
}

/// What the batcher calls before each step.
pub fn batcher(faults: Arc<Faults>) -> BatcherHook {
    Arc::new(move |step| faults.worker(Place::Batcher, step).map(drop))
}

/// Opens domains at a cursor.
pub fn rows(domains: Vec<Arc<PreparedDomain>>, seed: u64, faults: Arc<Faults>) -> RowsFactory {
    Arc::new(move |domain, cursor| {
        Ok(Box::new(RowsPort {
            reader: RowReader::new(Arc::clone(&domains[domain]), seed, cursor),
            read: 0,
            faults: Arc::clone(&faults),
        }))
    })
}

struct RowsPort {
    reader: RowReader,
    read: u64,
    faults: Arc<Faults>,
}

impl Rows for RowsPort {
    fn read(&mut self) -> Result<Drawn, PortError> {
        self.read += 1;
        self.faults.worker(Place::Loader, self.read)?;
        self.reader
            .read()
            .map_err(|error| PortError::Data(error.to_string()))
    }
}

fn sequences(batch: &MicroBatch) -> Vec<Sequence<'_>> {
    let rows = batch.rows.iter();
    rows.map(|row| sequence(&row.drawn.row)).collect()
}

impl ddk_actors::Teacher for TeacherPort {
    type Signal = Signal;
    type Weights = Vec<Tensor>;

    fn label(&mut self, batch: &MicroBatch) -> Result<Signal, PortError> {
        let nan = self.faults.worker(Place::Teacher, batch.step)?;
        let mut signal = match &self.teacher {
            Some(teacher) if self.labels => {
                let _turn = self.turns.wait();
                teacher.label(&sequences(batch)).map_err(engine_error)?
            }
            _ => Signal::Nothing,
        };
        if nan {
            signal.poison().map_err(engine_error)?;
        }
        Ok(signal)
    }

    fn perplexities(
        &mut self,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let teacher = self.teacher.as_ref().ok_or_else(|| {
            PortError::Other("perplexities are asked of a lane without a teacher".to_owned())
        })?;
        let perplexities = self
            .evaluation
            .perplexities(teacher.model(), cancelled)
            .map_err(engine_error)?;
        if !self.labels {
            // It has said all that it is asked for.
            self.teacher = None;
            give_freed_memory_back();
        }
        Ok(perplexities)
    }

    fn perplexities_of(
        &mut self,
        weights: &Vec<Tensor>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let copies = &mut self.copies;
        copies.made += 1;
        let nan = self.faults.worker(Place::Evaluation, copies.made)?;
        let model = match &mut copies.model {
            Some(model) => model,
            none => {
                let mut model =
                    Model::load(&copies.folder, &copies.placement).map_err(model_error)?;
                // As the student is: a frozen model's layers are computed otherwise, with other last bits.
                model.set_trainable(true);
                none.insert(model)
            }
        };
        model.set_parameters(weights).map_err(model_error)?;
        let measured = self.evaluation.perplexities(model, cancelled);
        Ok(broken_by(nan, measured.map_err(engine_error)?))
    }

    fn busy_seconds(&self) -> f64 {
        self.lane.busy_seconds()
    }
}

impl ddk_actors::Student for StudentPort {
    type Signal = Signal;
    type Weights = Vec<Tensor>;

    fn accumulate(&mut self, batch: &MicroBatch, signal: Signal) -> Result<MicroLoss, PortError> {
        let rows = sequences(batch);
        let asked = Instant::now();
        let turn = self.turns.wait();
        let waited = asked.elapsed().as_secs_f64();
        let done = self
            .student
            .accumulate(&rows, Some(&signal), batch.step_predictions as f64)
            .map_err(engine_error)?;
        drop(turn);
        // What is not a number has to come out of the engine to be skipped there.
        let ce_sum = match self.faults.worker(Place::Student, batch.step)? {
            true => self.student.poison(),
            false => done.ce_sum,
        };
        Ok(MicroLoss {
            ce_sum,
            kl_sum: done.kl_sum,
            layer_sum: done.layer_sum,
            rows: done.rows.iter().map(row_loss).collect(),
            seconds: [
                ("teacher_wait", waited),
                ("forward", done.forward_seconds),
                ("head", done.head_seconds),
                ("backward", done.backward_seconds),
            ],
            teacher_flops: match signal {
                Signal::Nothing => 0.0,
                Signal::Hidden { .. } => self.flops.teacher(&rows),
            },
            student_flops: self.flops.student(&rows),
        })
    }

    fn update(&mut self, step: u64) -> Result<Update, PortError> {
        self.student.set_lr_end(self.live.lr_end());
        let report = self.student.update(step).map_err(engine_error)?;
        Ok(updated(report))
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<Update, PortError> {
        let report = self.student.discard(step, reason).map_err(engine_error)?;
        Ok(updated(report))
    }

    fn perplexities(
        &mut self,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f64>>, PortError> {
        self.evaluations += 1;
        let nan = self.faults.worker(Place::Evaluation, self.evaluations)?;
        let measured = self
            .evaluation
            .perplexities(self.student.model(), cancelled)
            .map_err(engine_error)?;
        Ok(broken_by(nan, measured))
    }

    fn weights(&mut self) -> Result<Vec<Tensor>, PortError> {
        self.student.model().copy_parameters().map_err(model_error)
    }

    fn snapshot(&mut self) -> Result<Vec<NamedFile>, PortError> {
        let snapshot = self.student.snapshot().map_err(engine_error)?;
        let records = self.records.clone().into_iter();
        let records = records.map(|(name, text)| NamedFile {
            name: name.to_owned(),
            write: Box::new(move |out| out.write_all(&text)),
        });
        let files = snapshot.into_files().into_iter();
        let files = files.map(|(name, write)| NamedFile {
            name: name.to_owned(),
            write,
        });
        Ok(files.chain(records).collect())
    }

    fn busy_seconds(&self) -> f64 {
        self.lane.busy_seconds()
    }
}

/// What is measured, or numbers that are none where a fault asks for them.
fn broken_by(nan: bool, measured: Option<Vec<f64>>) -> Option<Vec<f64>> {
    match nan {
        true => measured.map(|perplexities| vec![f64::NAN; perplexities.len()]),
        false => measured,
    }
}

fn row_loss(sums: &RowSums) -> RowLoss {
    RowLoss {
        ce: sums.ce,
        excess: sums.excess,
    }
}

fn updated(report: UpdateReport) -> Update {
    Update {
        learning_rate: report.learning_rate,
        grad_norm: report.grad_norm,
        skipped: report.skipped,
        seconds: report.optimizer_seconds,
    }
}

fn device_error(error: DeviceError) -> PortError {
    PortError::Configuration(error.to_string())
}

fn model_error(error: ModelError) -> PortError {
    match error {
        ModelError::Torch(TorchError::OutOfMemory(text)) => PortError::OutOfMemory(text),
        other => PortError::Configuration(chain(&other)),
    }
}

fn engine_error(error: EngineError) -> PortError {
    if error.is_out_of_memory() {
        PortError::OutOfMemory(chain(&error))
    } else {
        PortError::Other(chain(&error))
    }
}

/// An error with its causes on one line, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(&format!(": {cause_text}"));
        }
        source = cause.source();
    }
    text
}
