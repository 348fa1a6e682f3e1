//! TED's first stage: trains the filters on the task while both models are frozen.
//!
//! A filter between equal widths starts as the identity. Any other filter is drawn from a normal distribution with
//! variance 1 / d_student. The draw depends only on the filter's name, so runs with different seeds start alike.

use std::{path::Path, time::Instant};

use ddk_corpus::Sequence;
use ddk_model::{LmHead, Model, safetensors::read_tensors};
use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, Objective, Positions, chunked_head,
};
use ddk_run::{MicroBatchSums, PhaseSeconds, StepPhase, UpdateStats};
use ddk_torch::TorchError;
use tch::{Device, Kind, Tensor};

use crate::{
    EngineError, Trainable,
    adamw::AdamW,
    batch::batch_tensors,
    filters::{Filters, read_filter},
    options::StudentOptions,
    snapshot::{MOMENTS_FILE, Snapshot, WEIGHTS_FILE, read_moments},
    teacher::TeacherOutput,
    update::Updates,
};

/// Trains TED's filters on the task while both models are frozen.
#[derive(Debug)]
pub struct FilterStage {
    student: Model,
    options: StudentOptions,
    filters: Filters,
    /// The teacher's final norm and LM head, on the student's device.
    output: LmHead,
    /// For each pair, the student's filter and then the teacher's.
    parameters: Vec<(String, Tensor)>,
    updates: Updates,
}

impl FilterStage {
    /// Starts with new filters. The options for the loss and for activation checkpointing have no effect here: the loss
    /// is the cross-entropy of each filter, and no gradient flows through the student.
    ///
    /// # Errors
    /// If libtorch cannot create the filters or the optimizer's moments.
    pub fn new(
        student: Model,
        options: StudentOptions,
        filters: Filters,
        output: LmHead,
    ) -> Result<Self, EngineError> {
        let device = student.device();
        let (from, to) = (student.config().hidden_size(), output.head().size()[1]);
        let mut parameters = Vec::new();
        for pair in &filters.pairs {
            parameters.push((
                pair.of_student(),
                initial(&pair.of_student(), from, to, device)?,
            ));
            parameters.push((
                pair.of_teacher(),
                initial(&pair.of_teacher(), to, to, device)?,
            ));
        }
        let optimizer = AdamW::new(options.adamw, &parameters)?;
        Ok(Self::with(
            student, options, filters, output, parameters, optimizer,
        ))
    }

    /// Resumes from the files of a checkpoint.
    ///
    /// # Errors
    /// If the checkpoint's weights or moments cannot be read or do not match the filters.
    pub fn restore(
        student: Model,
        options: StudentOptions,
        filters: Filters,
        output: LmHead,
        checkpoint: &Path,
    ) -> Result<Self, EngineError> {
        let file = read_tensors(&checkpoint.join(WEIGHTS_FILE))?;
        let mut parameters = Vec::new();
        for pair in &filters.pairs {
            for name in [pair.of_student(), pair.of_teacher()] {
                let filter = read_filter(&file, &name, student.device())?;
                parameters.push((name, filter));
            }
        }
        let moments = checkpoint.join(MOMENTS_FILE);
        let optimizer = read_moments(&moments, options.adamw, &parameters)?;
        Ok(Self::with(
            student, options, filters, output, parameters, optimizer,
        ))
    }

    fn with(
        mut student: Model,
        options: StudentOptions,
        filters: Filters,
        output: LmHead,
        parameters: Vec<(String, Tensor)>,
        optimizer: AdamW,
    ) -> Self {
        student.set_trainable(false);
        for (_, parameter) in &parameters {
            let _ = parameter.set_requires_grad(true);
        }
        Self {
            student,
            updates: Updates::new(optimizer, &options),
            options,
            filters,
            output,
            parameters,
        }
    }

    /// Returns the cross-entropy of a filter's output, and adds to the filter's gradient.
    fn task_loss(
        &self,
        index: usize,
        hidden: &Tensor,
        positions: &Positions<'_>,
    ) -> Result<f64, EngineError> {
        let filter = &self.parameters[index].1;
        let filtered = || hidden.f_mm(&filter.f_to_kind(hidden.kind())?.f_tr()?);
        let normed = self.output.normed(&filtered().map_err(TorchError::from)?)?;
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
            normed
                .f_mul(&done.hidden_gradient)
                .and_then(|product| product.f_sum(Kind::Float)?.f_backward())
                .map_err(TorchError::from)?;
        }
        Ok(done.ce_sum)
    }

    fn clear_gradients(&mut self) -> Result<(), TorchError> {
        let _no_grad = tch::no_grad_guard();
        for (_, parameter) in &self.parameters {
            let mut gradient = parameter.f_grad()?;
            if gradient.defined() {
                let _ = gradient.f_zero_()?;
            }
        }
        Ok(())
    }
}

impl Trainable for FilterStage {
    fn model(&self) -> &Model {
        &self.student
    }

    /// The loss is the mean over all filters, both the teacher's and the student's.
    fn accumulate(
        &mut self,
        rows: &[&Sequence],
        teacher: Option<&TeacherOutput>,
        denominator: f64,
    ) -> Result<MicroBatchSums, EngineError> {
        let of_teacher = teacher.map_or(&[][..], TeacherOutput::layers);
        let started = Instant::now();
        let batch = batch_tensors(rows, self.options.vocabulary, self.student.device())?;
        let of_student = {
            let _no_grad = tch::no_grad_guard();
            let layers = self.filters.student_layers();
            let parts = batch.parts.as_deref();
            self.student
                .hidden_and_layers(&batch.tokens, parts, &layers)?
                .1
        };
        if of_teacher.len() != of_student.len() {
            return Err(EngineError::NoLayers);
        }
        let forward_seconds = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let count = self.parameters.len() as f64;
        let positions = Positions {
            labels: &batch.labels,
            weights: None,
            denominator: denominator * count,
        };
        let mut sum = 0.0;
        for (pair, (student, teacher)) in of_student.iter().zip(of_teacher).enumerate() {
            for (side, hidden) in [student, teacher].into_iter().enumerate() {
                let width = hidden.size().last().copied().unwrap_or(0);
                let hidden = hidden.f_reshape([-1, width]).map_err(TorchError::from)?;
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

    fn update(&mut self, step: u64) -> Result<UpdateStats, EngineError> {
        let gradients = self.parameters.iter().map(|(_, parameter)| {
            let gradient = parameter.f_grad()?;
            if gradient.defined() {
                Ok(gradient)
            } else {
                Ok(parameter.detach().f_zeros_like()?)
            }
        });
        let gradients = gradients.collect::<Result<Vec<_>, TorchError>>()?;
        let report = self.updates.make(step, &self.parameters, &gradients)?;
        self.clear_gradients()?;
        Ok(report)
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, EngineError> {
        self.clear_gradients()?;
        Ok(self.updates.discard(step, reason))
    }

    fn snapshot(&self) -> Result<Snapshot, EngineError> {
        Snapshot::take(&self.parameters, self.updates.optimizer())
    }

    fn set_learning_rates(&mut self, peak: f64, end: f64) {
        self.updates.set_learning_rates(peak, end);
    }

    fn poison(&mut self) -> f64 {
        self.updates.see(false);
        f64::NAN
    }
}

/// A filter's initial weights.
fn initial(name: &str, from: i64, to: i64, device: Device) -> Result<Tensor, TorchError> {
    if from == to {
        return Ok(Tensor::f_eye(from, (Kind::Float, device))?);
    }
    let mut rng = ddk_order::stream(0, name, &[]);
    let deviation = (from as f64).sqrt().recip();
    let values: Vec<f32> = (0..from * to)
        .map(|_| (deviation * ddk_order::standard_normal(&mut rng)) as f32)
        .collect();
    Ok(Tensor::f_from_slice(&values)?
        .f_reshape([to, from])?
        .f_to_device(device)?)
}
