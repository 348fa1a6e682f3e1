//! The student: accumulates the gradients of a step's micro-batches, then makes one update.

use std::{path::Path, time::Instant};

use ddk_corpus::Sequence;
use ddk_model::{Model, safetensors::read_tensors};
use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, LogitBuffers, PerPosition, Positions,
    chunked_head,
};
use ddk_run::{MicroBatchSums, PhaseSeconds, SequenceLoss, StepPhase, UpdateStats};
use ddk_torch::synchronize;
use tch::{Device, Kind, Tensor};

use crate::{
    EngineError, Trainable,
    batch::batch_tensors,
    filters::{Filter, Filters, distance_of_layers, read_filters, trained},
    options::StudentOptions,
    snapshot::WEIGHTS_FILE,
    teacher::TeacherOutput,
    update::{Updates, gradient_of},
};

/// A model in training, on the worker that built it.
#[derive(Debug)]
pub struct Student {
    model: Model,
    /// Over the model's parameters, then the filters.
    updates: Updates,
    options: StudentOptions,
    /// The teacher's LM head on the student's device: `[teacher's columns, teacher's d_model]`.
    teacher_head: Option<Tensor>,
    row_losses: Detail,
    /// Gradient of the student's LM head, accumulated over the step's micro-batches.
    head_gradient: Tensor,
    /// Gradient of the embedding, accumulated likewise. `None` if the LM head is tied to the embedding:
    /// `head_gradient` then holds both.
    embedding_gradient: Option<Tensor>,
    /// TED's filters, with the gradients accumulated over the step's micro-batches.
    filters: Vec<Filter>,
    buffers: LogitBuffers,
}

impl Student {
    /// Starts from `model` with zero moments, and reads filters from the file that the filter stage wrote. With a
    /// checkpoint, resumes from its files instead. `model` then provides only the architecture.
    ///
    /// # Errors
    /// If the options name filters but no file for them, if a file cannot be read, lacks a filter or does not match, or
    /// if libtorch cannot allocate the gradients and moments.
    pub fn new(
        mut model: Model,
        options: StudentOptions,
        teacher_head: Option<Tensor>,
        checkpoint: Option<&Path>,
    ) -> Result<Self, EngineError> {
        model.set_trainable(true);
        let learned = options.filters.as_ref().map(|filters| &filters.learned);
        let filters = match (checkpoint, learned) {
            (Some(folder), _) => {
                let weights = read_tensors(&folder.join(WEIGHTS_FILE))?;
                model.replace_weights(&weights)?;
                read_filters(&model, &options, &weights)?
            }
            (None, None) => Vec::new(),
            (None, Some(None)) => return Err(EngineError::NoLayers),
            (None, Some(Some(path))) => read_filters(&model, &options, &read_tensors(path)?)?,
        };
        let zeros = |like: &Tensor| like.detach().f_zeros_like();
        let is_tied = model.config().tied();
        Ok(Self {
            updates: Updates::new(trained(&model, &filters), &options, checkpoint)?,
            row_losses: Detail::Sums,
            head_gradient: zeros(model.head())?,
            embedding_gradient: (!is_tied).then(|| zeros(model.embedding())).transpose()?,
            filters,
            buffers: LogitBuffers::default(),
            model,
            options,
            teacher_head,
        })
    }

    /// Sets which sums of each sequence to return from now on, besides those of the micro-batch: none, the
    /// cross-entropy, or also its excess over the teacher's. They change no loss and no gradient. The excess applies
    /// the teacher's LM head even at gamma 0.
    pub fn set_row_losses(&mut self, row_losses: Detail) {
        self.row_losses = row_losses;
    }
}

impl Trainable for Student {
    fn model(&self) -> &Model {
        &self.model
    }

    fn updates(&mut self) -> &mut Updates {
        &mut self.updates
    }

    fn accumulate(
        &mut self,
        rows: &[&Sequence],
        teacher: Option<&TeacherOutput>,
        denominator: f64,
    ) -> Result<MicroBatchSums, EngineError> {
        let started = Instant::now();
        let batch = batch_tensors(rows, self.options.vocabulary, self.model.device())?;
        let layers = self.options.filters.as_ref();
        let layers = layers.map_or_else(Vec::new, Filters::student_layers);
        let trace = self.model.trace(
            &batch.tokens,
            batch.parts.as_deref(),
            self.options.recompute,
            &layers,
        )?;
        let detached = trace.hidden().detach().f_flatten(0, -2)?;
        synchronize(self.model.device())?;
        let forward_seconds = started.elapsed().as_secs_f64();

        let started = Instant::now();
        let student_head = self.model.head_for_products()?;
        let teacher_input = match (teacher, &self.teacher_head) {
            (Some(output), Some(weight)) => Some(HeadInput::new(&output.hidden, weight)),
            (None, _) => None,
            (Some(_), None) => return Err(EngineError::NoTeacherHead),
        };
        let positions = Positions {
            labels: &batch.labels,
            weights: None,
            denominator,
        };
        let output = chunked_head(
            &HeadInput::new(&detached, &student_head),
            teacher_input.as_ref(),
            &positions,
            &HeadOptions {
                objective: self.options.objective,
                vocabulary: self.options.vocabulary,
                chunk: self.options.chunk,
                detail: self.row_losses,
            },
            &mut HeadGradients {
                weight: Some(&mut self.head_gradient),
                bias: None,
                buffers: Some(&mut self.buffers),
            },
        )?;
        let sequences = match &output.per_position {
            Some(values) => sequence_losses(values, self.row_losses, rows.len())?,
            None => Vec::new(),
        };
        let (layer_sum, layer_gradients) = distance_of_layers(
            &mut self.filters,
            trace.layers(),
            teacher,
            &positions,
            self.options.objective.layer_weight,
        )?;
        let head_seconds = started.elapsed().as_secs_f64();
        let sums = [output.ce_sum, output.kl_sum, layer_sum];
        let finite = sums.iter().all(|sum| sum.is_finite());
        self.updates.see(finite);

        let started = Instant::now();
        if finite {
            let gradient = output.hidden_gradient.f_reshape(trace.hidden().size())?;
            let of_embedding = self.embedding_gradient.as_mut();
            let of_embedding = of_embedding.unwrap_or(&mut self.head_gradient);
            trace.backward(&gradient, &layer_gradients, of_embedding)?;
        }
        Ok(MicroBatchSums {
            ce: output.ce_sum,
            kl: output.kl_sum,
            layer: layer_sum,
            sequences,
            targets: batch.predictions as u64,
            seconds: PhaseSeconds::from([
                (StepPhase::Forward, forward_seconds),
                (StepPhase::Head, head_seconds),
                (StepPhase::Backward, started.elapsed().as_secs_f64()),
            ]),
            ..MicroBatchSums::default()
        })
    }

    /// The gradient of each parameter, then of each filter.
    fn gradients(&self) -> Result<Vec<Tensor>, EngineError> {
        let _no_grad = tch::no_grad_guard();
        let head = self.model.head().data_ptr();
        let embedding = self.model.embedding().data_ptr();
        let of_filters = self.filters.iter();
        let of_filters = of_filters.map(|filter| Ok(filter.gradient.shallow_clone()));
        let of_model = self.model.parameters().iter().map(|(_, parameter)| {
            let at = parameter.data_ptr();
            Ok(match &self.embedding_gradient {
                _ if at == head => self.head_gradient.shallow_clone(),
                Some(of_embedding) if at == embedding => of_embedding.shallow_clone(),
                _ => gradient_of(parameter)?,
            })
        });
        of_model.chain(of_filters).collect()
    }

    fn update(&mut self, step: u64) -> Result<UpdateStats, EngineError> {
        let gradients = self.gradients()?;
        let report = self.updates.make(step, &gradients);
        // Even an update that failed may have changed some weights.
        self.model.weights_changed();
        let report = report?;
        self.clear_gradients()?;
        Ok(report)
    }

    fn clear_gradients(&mut self) -> Result<(), EngineError> {
        self.updates.clear_gradients()?;
        let _no_grad = tch::no_grad_guard();
        let of_filters = self.filters.iter_mut().map(|filter| &mut filter.gradient);
        let of_tables = [&mut self.head_gradient]
            .into_iter()
            .chain(&mut self.embedding_gradient);
        for gradient in of_tables.chain(of_filters) {
            let _ = gradient.f_zero_()?;
        }
        Ok(())
    }
}

/// Sums the positions of each sequence, in f64.
fn sequence_losses(
    values: &PerPosition,
    wanted: Detail,
    rows: usize,
) -> Result<Vec<SequenceLoss>, EngineError> {
    let sums = |positions: &Tensor| -> Result<Vec<f64>, EngineError> {
        let by_row = positions.f_reshape([rows as i64, -1])?;
        let sums = by_row.f_sum_dim_intlist(1, false, Kind::Double)?;
        Ok(Vec::try_from(&sums.f_to_device(Device::Cpu)?)?)
    };
    let ce = sums(&values.ce)?;
    let excess = if wanted == Detail::PositionsAndTeacher {
        let teacher = values.teacher_ce.as_ref();
        let teacher = teacher.ok_or(EngineError::NoTeacherOutput)?;
        sums(&values.ce.f_sub(teacher)?.f_clamp_min(0.0)?)?
    } else {
        vec![0.0; rows]
    };
    let both = ce.into_iter().zip(excess);
    Ok(both
        .map(|(ce, excess)| SequenceLoss { ce, excess })
        .collect())
}
