//! The student: accumulates the gradients of a step's micro-batches, then makes one update.

use std::time::Instant;

use ddk_corpus::Sequence;
use ddk_model::{Model, safetensors::read_tensors};
use ddk_objective::{
    Detail, HeadGradients, HeadInput, HeadOptions, LogitBuffers, PerPosition, Positions,
    chunked_head,
};
use ddk_run::{MicroBatchSums, PhaseSeconds, SequenceLoss, StepPhase, UpdateStats};
use ddk_torch::{TorchError, synchronize};
use tch::{Device, Kind, Tensor};

use crate::{
    EngineError, Trainable,
    adamw::AdamW,
    batch::batch_tensors,
    filters::{Filter, Filters, distance_of_layers, read_filters, trained},
    options::StudentOptions,
    snapshot::Snapshot,
    teacher::TeacherOutput,
    update::Updates,
};

/// Which per-sequence sums to return besides those of the micro-batch. They change no loss and no gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceLosses {
    /// None.
    None,
    /// The cross-entropy.
    CrossEntropy,
    /// The cross-entropy, and its excess over the teacher's. Applies the teacher's LM head even at gamma 0.
    Excess,
}

/// A model in training, on the worker that built it.
#[derive(Debug)]
pub struct Student {
    model: Model,
    /// The model's parameters, then the filters.
    trained: Vec<(String, Tensor)>,
    updates: Updates,
    options: StudentOptions,
    /// The teacher's LM head on the student's device: `[teacher's columns, teacher's d_model]`.
    teacher_head: Option<Tensor>,
    row_losses: SequenceLosses,
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
    /// Starts from `model` with zero moments. Reads filters from the file that the filter stage wrote.
    ///
    /// # Errors
    /// If the options name filters but no file for them, if that file cannot be read or lacks a filter, or if libtorch
    /// cannot allocate the gradients and moments.
    pub fn new(
        mut model: Model,
        options: StudentOptions,
        teacher_head: Option<Tensor>,
    ) -> Result<Self, EngineError> {
        model.set_trainable(true);
        let learned = options.filters.as_ref().map(|filters| &filters.learned);
        let filters = match learned {
            None => Vec::new(),
            Some(None) => return Err(EngineError::NoLayers),
            Some(Some(path)) => read_filters(&model, &options, &read_tensors(path)?)?,
        };
        let optimizer = AdamW::new(options.adamw, &trained(&model, &filters))?;
        Self::with_optimizer(model, optimizer, options, teacher_head, filters)
    }

    pub(crate) fn with_optimizer(
        model: Model,
        optimizer: AdamW,
        options: StudentOptions,
        teacher_head: Option<Tensor>,
        filters: Vec<Filter>,
    ) -> Result<Self, EngineError> {
        let zeros = |like: &Tensor| like.detach().f_zeros_like().map_err(TorchError::from);
        let head_gradient = zeros(model.head().weight)?;
        let embedding_gradient = (!model.head().tied)
            .then(|| zeros(model.embedding()))
            .transpose()?;
        Ok(Self {
            trained: trained(&model, &filters),
            model,
            updates: Updates::new(optimizer, &options),
            options,
            teacher_head,
            row_losses: SequenceLosses::None,
            head_gradient,
            embedding_gradient,
            filters,
            buffers: LogitBuffers::default(),
        })
    }

    /// How the student is trained.
    pub fn options(&self) -> &StudentOptions {
        &self.options
    }

    /// Sets which per-sequence sums to return from now on.
    pub fn set_row_losses(&mut self, row_losses: SequenceLosses) {
        self.row_losses = row_losses;
    }

    /// Returns the gradient of each parameter, then of each filter.
    fn gradients(&self) -> Result<Vec<Tensor>, TorchError> {
        let _no_grad = tch::no_grad_guard();
        let head = self.model.head().weight.data_ptr();
        let embedding = self.model.embedding().data_ptr();
        let of_filters = self.filters.iter();
        let of_filters = of_filters.map(|filter| Ok(filter.gradient.shallow_clone()));
        let of_model = self.model.parameters().iter().map(|(_, parameter)| {
            let (gradient, at) = (parameter.f_grad()?, parameter.data_ptr());
            Ok(match &self.embedding_gradient {
                _ if at == head => self.head_gradient.shallow_clone(),
                Some(of_embedding) if at == embedding => of_embedding.shallow_clone(),
                _ if gradient.defined() => gradient,
                _ => parameter.detach().f_zeros_like()?,
            })
        });
        of_model.chain(of_filters).collect()
    }

    fn clear_gradients(&mut self) -> Result<(), TorchError> {
        let _no_grad = tch::no_grad_guard();
        for (_, parameter) in self.model.parameters() {
            let mut gradient = parameter.f_grad()?;
            if gradient.defined() {
                let _ = gradient.f_zero_()?;
            }
        }
        for gradient in [&mut self.head_gradient]
            .into_iter()
            .chain(&mut self.embedding_gradient)
        {
            let _ = gradient.f_zero_()?;
        }
        for filter in &mut self.filters {
            let _ = filter.gradient.f_zero_()?;
        }
        Ok(())
    }
}

impl Trainable for Student {
    fn model(&self) -> &Model {
        &self.model
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
        let shape = trace.hidden().size();
        let width = shape.last().copied().unwrap_or(0);
        let detached = trace
            .hidden()
            .detach()
            .f_reshape([-1, width])
            .map_err(TorchError::from)?;
        synchronize(self.model.device())?;
        let forward_seconds = started.elapsed().as_secs_f64();

        let started = Instant::now();
        let student_head = self.model.head_for_products()?;
        let teacher_input = match (teacher, &self.teacher_head) {
            (Some(output), Some(weight)) => Some(HeadInput::new(output.hidden(), weight)),
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
                detail: match self.row_losses {
                    SequenceLosses::None => Detail::Sums,
                    SequenceLosses::CrossEntropy => Detail::Positions,
                    SequenceLosses::Excess => Detail::PositionsAndTeacher,
                },
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
            let gradient = output
                .hidden_gradient
                .f_reshape(shape)
                .map_err(TorchError::from)?;
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

    fn update(&mut self, step: u64) -> Result<UpdateStats, EngineError> {
        let gradients = self.gradients()?;
        let report = self.updates.make(step, &self.trained, &gradients);
        // Even an update that failed may have changed some weights.
        self.model.weights_changed();
        let report = report?;
        self.clear_gradients()?;
        Ok(report)
    }

    fn set_learning_rates(&mut self, peak: f64, end: f64) {
        self.updates.set_learning_rates(peak, end);
    }

    fn poison(&mut self) -> f64 {
        self.updates.see(false);
        f64::NAN
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, EngineError> {
        self.clear_gradients()?;
        Ok(self.updates.discard(step, reason))
    }

    fn snapshot(&self) -> Result<Snapshot, EngineError> {
        Snapshot::take(&self.trained, self.updates.optimizer())
    }
}

/// Sums the positions of each sequence, in f64.
fn sequence_losses(
    values: &PerPosition,
    wanted: SequenceLosses,
    rows: usize,
) -> Result<Vec<SequenceLoss>, EngineError> {
    let sums = |positions: &Tensor| -> Result<Vec<f64>, TorchError> {
        let by_row = positions.f_reshape([rows as i64, -1])?;
        let sums = by_row.f_sum_dim_intlist(1, false, Kind::Double)?;
        Ok(Vec::try_from(&sums.f_to_device(Device::Cpu)?)?)
    };
    let ce = sums(&values.ce)?;
    let excess = match wanted {
        SequenceLosses::None | SequenceLosses::CrossEntropy => vec![0.0; rows],
        SequenceLosses::Excess => {
            let teacher = values.teacher_ce.as_ref();
            let teacher = teacher.ok_or(EngineError::NoTeacherOutput)?;
            let behind = values
                .ce
                .f_sub(teacher)
                .and_then(|behind| behind.f_clamp_min(0.0))
                .map_err(TorchError::from)?;
            sums(&behind)?
        }
    };
    let both = ce.into_iter().zip(excess);
    Ok(both
        .map(|(ce, excess)| SequenceLoss { ce, excess })
        .collect())
}
