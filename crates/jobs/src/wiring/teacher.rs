//! The teacher's port: runs a teacher on its worker.

use std::sync::Arc;

use anyhow::anyhow;
use ddk_actors::{
    MicroBatch, PortError, Work,
    ports::{Between, TeacherFactory},
};
use ddk_engine::{Evaluation, Filters, Teacher, TeacherOutput};
use ddk_model::{Model, Placement};
use ddk_settings::Settings;
use ddk_torch::{ComputeContext, TimeSlice, give_freed_memory_back, parse_device};
use tch::Tensor;

use super::{
    context::{Context, port_error, sequences},
    models::{
        ModelFolders, build_teacher, needs_teacher_output, student_placement, teacher_placement,
    },
};
use crate::faults::{Faults, Place};

/// A teacher on its worker.
pub struct TeacherPort {
    context: Context,
    /// Absent if it has no work.
    teacher: Option<Teacher>,
    /// Whether batches need the teacher's output.
    needs_output: bool,
    folders: ModelFolders,
    /// Where student copies are evaluated, and the model that holds them, built for the first copy.
    copy_placement: Placement,
    copy: Option<Model>,
}

/// Returns a factory that builds teachers on their threads. `known`: whether the teacher's perplexities are known.
/// A worker that neither labels nor measures holds no model.
pub fn teachers(
    settings: &Settings,
    folders: ModelFolders,
    evaluation: Evaluation,
    known: bool,
    filters: Option<Filters>,
    turns: TimeSlice,
    faults: Arc<Faults>,
) -> TeacherFactory<TeacherPort> {
    let (teacher, student) = (settings.teacher.clone(), settings.student.clone());
    let needs_output = needs_teacher_output(settings);
    Arc::new(move |number| {
        let build = || -> anyhow::Result<TeacherPort> {
            let placement = teacher_placement(&teacher, number)?;
            let student_device = parse_device(&student.device)?;
            let devices = [&placement.devices[..], &[student_device]].concat();
            let compute = ComputeContext::beside_others(teacher.threads, &devices, &turns)?;
            let context = Context::new(compute, &faults, &evaluation);
            let measures = number == 0 && !known;
            let teacher = (needs_output || measures).then(|| {
                context.work(Work::Label, || {
                    let model = folders.frozen.model(&placement)?;
                    let filters = filters.as_ref();
                    Ok(build_teacher(
                        model,
                        student_device,
                        filters,
                        teacher.batch_size,
                    )?)
                })
            });
            Ok(TeacherPort {
                teacher: teacher.transpose()?,
                context,
                needs_output,
                folders: folders.clone(),
                copy_placement: student_placement(&student)?,
                copy: None,
            })
        };
        build().map_err(|error| port_error(error, Work::Label))
    })
}

impl ddk_actors::Teacher for TeacherPort {
    type TeacherOutput = Option<TeacherOutput>;
    type Weights = Vec<Tensor>;

    fn label(&mut self, batch: &MicroBatch) -> Result<Option<TeacherOutput>, PortError> {
        let nan = self.context.faults.worker(Place::Teacher, batch.step)?;
        let Some(teacher) = self.teacher.as_ref().filter(|_| self.needs_output) else {
            return Ok(None);
        };
        let label = || {
            let mut output = teacher.label(&sequences(batch))?;
            if nan {
                output.poison()?;
            }
            Ok(Some(output))
        };
        Ok(self.context.work_in_turn(Work::Label, label)?.0)
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        let perplexities = self.context.work(Work::Evaluate, || {
            let teacher = self.teacher.as_ref();
            let teacher = teacher.ok_or_else(|| {
                anyhow!("cannot measure perplexities: this compute has no teacher")
            })?;
            let evaluation = &self.context.evaluation;
            Ok(evaluation.perplexities(teacher.model(), between)?)
        })?;
        if !self.needs_output {
            // Nothing else needs the teacher.
            self.teacher = None;
            self.folders.frozen.forget();
        }
        // Evaluation batches are larger than later ones.
        give_freed_memory_back();
        Ok(perplexities)
    }

    fn perplexities_of(
        &mut self,
        weights: &Vec<Tensor>,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let (copy, folder) = (&mut self.copy, &self.folders.student);
        let copied = || {
            let model = match copy {
                Some(model) => model,
                none => {
                    let mut model = Model::load(folder, &self.copy_placement)?;
                    // Trainable like the student: a frozen model computes its layers differently, so the last bits
                    // would differ.
                    model.set_trainable(true);
                    none.insert(model)
                }
            };
            model.set_parameters(weights)?;
            Ok(&*model)
        };
        self.context.evaluate(copied, between)
    }

    fn busy_seconds(&self) -> f64 {
        self.context.compute.busy_seconds()
    }
}
