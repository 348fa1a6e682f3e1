//! TED's first stage: trains the filters on the task while both models are frozen.
//!
//! A filter between equal widths starts as the identity. Any other filter is drawn from a normal distribution with
//! variance 1 / d_student. The draw depends only on the filter's name, so runs with different seeds start alike.

use std::{path::Path, time::Instant};

use ddk_corpus::Sequence;
use ddk_model::{LmHead, Model, normal, safetensors::read_tensors};
use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, Objective, Positions, chunked_head,
};
use ddk_run::{MicroBatchSums, PhaseSeconds, StepPhase, UpdateStats};
use tch::{Device, Kind, TchError, Tensor};

use crate::{
    EngineError, Trainable,
    batch::batch_tensors,
    filters::{Filters, read_filter},
    options::StudentOptions,
    snapshot::WEIGHTS_FILE,
    teacher::TeacherOutput,
    update::{Updates, gradient_of},
};

/// Trains TED's filters on the task while both models are frozen.
#[derive(Debug)]
pub struct FilterStage {
    student: Model,
    options: StudentOptions,
    filters: Filters,
    /// The teacher's final norm and LM head, on the student's device.
    output: LmHead,
    /// Over the student's filter and then the teacher's of each pair.
    updates: Updates,
}

impl FilterStage {
    /// Starts with new filters, or with those of a checkpoint. The options for the loss and for activation
    /// checkpointing have no effect here: the loss is the cross-entropy of each filter, and no gradient flows through
    /// the student.
    ///
    /// # Errors
    /// If libtorch cannot create the filters or the optimizer's moments, or if those of the checkpoint cannot be read
    /// or do not match.
    pub fn new(
        mut student: Model,
        options: StudentOptions,
        filters: Filters,
        output: LmHead,
        checkpoint: Option<&Path>,
    ) -> Result<Self, EngineError> {
        student.set_trainable(false);
        let device = student.device();
        let (from, to) = (student.config().hidden_size(), output.head().size()[1]);
        let file = checkpoint.map(|folder| read_tensors(&folder.join(WEIGHTS_FILE)));
        let file = file.transpose()?;
        let mut parameters = Vec::new();
        for pair in &filters.pairs {
            for (name, from) in [(pair.of_student(), from), (pair.of_teacher(), to)] {
                let filter = match &file {
                    Some(file) => read_filter(file, &name, device)?,
                    None => initial(&name, from, to, device)?,
                };
                parameters.push((name, filter.set_requires_grad(true)));
            }
        }
        Ok(Self {
            updates: Updates::new(parameters, &options, checkpoint)?,
            student,
            options,
            filters,
            output,
        })
    }

    /// Returns the cross-entropy of a filter's output, and adds to the filter's gradient.
    fn task_loss(
        &self,
        index: usize,
        hidden: &Tensor,
        positions: &Positions<'_>,
    ) -> Result<f64, EngineError> {
        let filter = self.updates.parameters[index].1.f_to_kind(hidden.kind())?;
        let normed = self.output.normed(&hidden.f_mm(&filter.f_tr()?)?)?;
        let done = chunked_head(
            &HeadInput::new(&normed.detach(), self.output.head()),
            None,
            positions,
            &HeadOptions {
                objective: Objective::cross_entropy(),
                vocabulary: self.options.vocabulary,
                chunk: self.options.chunk,
                detail: Detail::Sums,
            },
            &mut HeadGradients::default(),
        )?;
        if done.ce_sum.is_finite() {
            // The gradient of sum(normed * constant) with respect to `normed` is exactly the constant.
            let product = normed.f_mul(&done.hidden_gradient)?;
            product.f_sum(Kind::Float)?.f_backward()?;
        }
        Ok(done.ce_sum)
    }
}

impl Trainable for FilterStage {
    fn model(&self) -> &Model {
        &self.student
    }

    fn updates(&mut self) -> &mut Updates {
        &mut self.updates
    }

    /// The loss is the mean over all filters, both the teacher's and the student's.
    fn accumulate(
        &mut self,
        rows: &[&Sequence],
        teacher: Option<&TeacherOutput>,
        denominator: f64,
    ) -> Result<MicroBatchSums, EngineError> {
        let of_teacher = teacher.map_or(&[][..], |output| &output.layers);
        let started = Instant::now();
        let batch = batch_tensors(rows, self.options.vocabulary, self.student.device())?;
        let (layers, parts) = (self.filters.student_layers(), batch.parts.as_deref());
        let student = &self.student;
        let forward = || student.hidden_and_layers(&batch.tokens, parts, &layers);
        let (_, of_student) = tch::no_grad(forward)?;
        if of_teacher.len() != of_student.len() {
            return Err(EngineError::NoLayers);
        }
        let forward_seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let count = self.updates.parameters.len() as f64;
        let positions = Positions {
            labels: &batch.labels,
            weights: None,
            denominator: denominator * count,
        };
        let mut sum = 0.0;
        for (pair, (student, teacher)) in of_student.iter().zip(of_teacher).enumerate() {
            for (side, hidden) in [student, teacher].into_iter().enumerate() {
                let hidden = hidden.f_flatten(0, -2)?;
                sum += self.task_loss(2 * pair + side, &hidden, &positions)?;
            }
        }
        let ce_sum = sum / count;
        self.updates.see(ce_sum.is_finite());
        Ok(MicroBatchSums {
            ce: ce_sum,
            targets: batch.predictions as u64,
            seconds: PhaseSeconds::from([
                (StepPhase::Forward, forward_seconds),
                (StepPhase::Head, started.elapsed().as_secs_f64()),
                (StepPhase::Backward, 0.0),
            ]),
            ..MicroBatchSums::default()
        })
    }

    fn gradients(&self) -> Result<Vec<Tensor>, EngineError> {
        let parameters = self.updates.parameters.iter();
        let gradients = parameters.map(|(_, parameter)| gradient_of(parameter));
        gradients.collect()
    }

    fn update(&mut self, step: u64) -> Result<UpdateStats, EngineError> {
        let gradients = self.gradients()?;
        let report = self.updates.make(step, &gradients)?;
        self.clear_gradients()?;
        Ok(report)
    }

    fn clear_gradients(&mut self) -> Result<(), EngineError> {
        self.updates.clear_gradients()
    }
}

/// A filter's initial weights.
fn initial(name: &str, from: i64, to: i64, device: Device) -> Result<Tensor, TchError> {
    if from == to {
        return Tensor::f_eye(from, (Kind::Float, device));
    }
    let deviation = (from as f64).sqrt().recip();
    normal(0, name, deviation, &[to, from], device)
}
