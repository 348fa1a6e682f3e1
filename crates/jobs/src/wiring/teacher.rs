//! A teacher on its lane.

use std::{path::PathBuf, sync::Arc};

use ddk_actors::{
    MicroBatch, PortError,
    ports::{Between, TeacherFactory},
};
use ddk_engine::{Filters, Teacher, TeacherOutput};
use ddk_model::{Model, Placement};
use ddk_settings::Settings;
use ddk_torch::{Lane, Turns, give_freed_memory_back, parse_device};
use tch::Tensor;

use super::{
    Evaluation, ModelFolders, broken_by, build_teacher,
    errors::{device_error, engine_error, model_error, torch_error},
    needs_teacher_output, sequences, student_placement, teacher_placement, work, work_in_turn,
};
use crate::faults::{Faults, Place};

/// A teacher on its lane.
pub struct TeacherPort {
    faults: Arc<Faults>,
    lane: Lane,
    /// Absent where nothing is asked of it.
    teacher: Option<Teacher>,
    /// Whether batches need its output.
    needs_output: bool,
    evaluation: Evaluation,
    folders: ModelFolders,
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

/// Builds teachers on their threads; `known`: their perplexities are. A lane that neither labels nor measures
/// holds no model.
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
    let needs_output = needs_teacher_output(settings);
    Arc::new(move |number| {
        let placement = teacher_placement(&teacher, number).map_err(device_error)?;
        let student_device = parse_device(&student.device).map_err(device_error)?;
        let devices = [&placement.devices[..], &[student_device]].concat();
        let lane = Lane::beside_others(teacher.threads, &devices, &turns).map_err(torch_error)?;
        let build = || -> Result<Teacher, PortError> {
            let model = folders.frozen.model(&placement).map_err(model_error)?;
            build_teacher(model, student_device, filters.as_ref())
        };
        let measures = number == 0 && !known;
        let built = (needs_output || measures).then(|| work(&lane, build));
        Ok(TeacherPort {
            faults: Arc::clone(&faults),
            lane,
            teacher: built.transpose()?,
            needs_output,
            evaluation: evaluation.clone(),
            folders: folders.clone(),
            copies: Copies {
                folder: folders.student.clone(),
                placement: student_placement(&student).map_err(device_error)?,
                model: None,
                made: 0,
            },
        })
    })
}

impl ddk_actors::Teacher for TeacherPort {
    type Signal = Option<TeacherOutput>;
    type Weights = Vec<Tensor>;

    fn label(&mut self, batch: &MicroBatch) -> Result<Option<TeacherOutput>, PortError> {
        let nan = self.faults.worker(Place::Teacher, batch.step)?;
        let Some(teacher) = self.teacher.as_ref().filter(|_| self.needs_output) else {
            return Ok(None);
        };
        work_in_turn(&self.lane, || {
            let mut output = teacher.label(&sequences(batch)).map_err(engine_error)?;
            if nan {
                output.poison().map_err(engine_error)?;
            }
            Ok(Some(output))
        })
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        let teacher = self.teacher.as_ref().ok_or_else(|| {
            PortError::Other("perplexities are asked of a lane without a teacher".to_owned())
        })?;
        let perplexities = work(&self.lane, || {
            let model = teacher.model();
            let measured = self.evaluation.perplexities(model, between);
            measured.map_err(engine_error)
        })?;
        if !self.needs_output {
            // It has said all that it is asked for.
            self.teacher = None;
            self.folders.frozen.forget();
        }
        // Batches of the evaluation are larger than those that follow.
        give_freed_memory_back();
        Ok(perplexities)
    }

    fn perplexities_of(
        &mut self,
        weights: &Vec<Tensor>,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let copies = &mut self.copies;
        copies.made += 1;
        let documents = self.evaluation.documents();
        let told = || between(0, documents);
        let nan = self
            .faults
            .worker_until(Place::Evaluation, copies.made, &told)?;
        let evaluation = &self.evaluation;
        let measured = work(&self.lane, || {
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
            let measured = evaluation.perplexities(model, between);
            measured.map_err(engine_error)
        })?;
        Ok(broken_by(nan, measured))
    }

    fn busy_seconds(&self) -> f64 {
        self.lane.busy_seconds()
    }
}
