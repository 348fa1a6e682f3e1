//! Makes one update from a step's gradients: checks that they are finite, clips them, and applies AdamW at the
//! scheduled learning rate.

use std::{mem, path::Path, sync::Arc};

use ddk_run::{PhaseSeconds, SnapshotFile, StepPhase, UpdateStats};
use tch::Tensor;

use crate::{
    EngineError,
    adamw::{AdamW, check, sums_of_squares},
    buckets::Piece,
    options::StudentOptions,
    parallel::SlotSums,
    schedule::Schedule,
    sharding::Sharding,
    snapshot::{MOMENTS_FILE, read_moments, snapshot},
};

/// What trains, with its optimizer, and whether this step's losses allow an update.
#[derive(Debug)]
pub struct Updates {
    /// In the optimizer's order.
    pub(crate) parameters: Vec<(String, Tensor)>,
    pub(crate) optimizer: AdamW,
    clip_norm: f64,
    pub(crate) schedule: Schedule,
    /// Whether every loss of this step has been finite so far.
    finite: bool,
    /// The sums of this process's slots.
    slots: SlotSums,
    /// The exchange with the other processes, if there are any.
    sharding: Option<Sharding>,
}

impl Updates {
    /// Starts with zero moments, or with those of a checkpoint.
    pub(crate) fn new(
        parameters: Vec<(String, Tensor)>,
        options: &StudentOptions,
        checkpoint: Option<&Path>,
    ) -> Result<Self, EngineError> {
        let parallel = &options.parallel;
        let mut optimizer = AdamW::new(options.adamw, &parameters, parallel)?;
        if let Some(folder) = checkpoint {
            read_moments(&folder.join(MOMENTS_FILE), &mut optimizer, &parameters)?;
        }
        Ok(Self {
            parameters,
            optimizer,
            clip_norm: options.clip_norm,
            schedule: options.schedule,
            finite: true,
            slots: SlotSums::new(parallel.slots_each()),
            sharding: parallel.group.as_ref().map(Arc::clone).map(Sharding::new),
        })
    }

    /// Ends a slot with these gradients. Returns true if the caller must clear them for the next slot.
    pub(crate) fn end_slot(&mut self, gradients: &[Tensor]) -> Result<bool, EngineError> {
        self.slots.end_slot(gradients)
    }

    /// Records whether a loss is finite.
    pub(crate) fn see(&mut self, finite: bool) {
        self.finite &= finite;
    }

    /// Sets the gradients that autograd accumulated to 0.
    pub(crate) fn clear_gradients(&self) -> Result<(), EngineError> {
        let _no_grad = tch::no_grad_guard();
        for (_, parameter) in &self.parameters {
            let mut gradient = parameter.f_grad()?;
            if gradient.defined() {
                let _ = gradient.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Updates the parameters as step `step` (from 1). If a loss or gradient is not finite, the update is skipped and
    /// changes neither the parameters nor the moments. A skipped update still counts as a step of the schedule.
    /// `gradients` holds the sums over this process's slots. All processes call this together.
    pub(crate) fn make(
        &mut self,
        step: u64,
        gradients: &[Tensor],
    ) -> Result<UpdateStats, EngineError> {
        let learning_rate = self.schedule.learning_rate(step);
        let pieces = self.own_gradients(gradients)?;
        let all: Vec<&Tensor> = pieces.iter().flatten().collect();
        // SAFETY: only the backward pass of this thread writes gradients, and it is done.
        let squares = unsafe { sums_of_squares(&all)? };
        let (finite, squares) = self.agree(&squares)?;
        let grad_norm = squares.iter().fold(0.0, |sum, square| sum + square).sqrt();
        let skipped = match (finite, grad_norm.is_finite()) {
            (false, _) => Some("the loss is not finite".to_owned()),
            (true, false) => Some("the gradient is not finite".to_owned()),
            (true, true) => None,
        };
        if skipped.is_none() {
            let scale = (self.clip_norm / grad_norm).min(1.0);
            let (optimizer, parameters) = (&mut self.optimizer, &self.parameters);
            // SAFETY: only the thread of this worker uses the parameters, gradients and moments. Other workers get
            // copies (`Model::copy_parameters`, `snapshot`).
            unsafe { optimizer.update(parameters, &pieces, learning_rate, scale)? };
            if let Some(sharding) = &mut self.sharding {
                let _no_grad = tch::no_grad_guard();
                for bucket in &self.optimizer.buckets {
                    sharding.gather(bucket, &self.parameters)?;
                }
            }
        }
        self.finite = true;
        let exchange = self.sharding.as_mut();
        let exchange = exchange.map(|sharding| mem::take(&mut sharding.seconds));
        let seconds = exchange.map(|seconds| (StepPhase::Exchange, seconds));
        Ok(UpdateStats {
            learning_rate,
            grad_norm,
            skipped,
            seconds: PhaseSeconds::from_iter(seconds),
        })
    }

    /// The gradients of the pieces that this process owns, by bucket: the sums over all processes.
    fn own_gradients(&mut self, gradients: &[Tensor]) -> Result<Vec<Vec<Tensor>>, EngineError> {
        let _no_grad = tch::no_grad_guard();
        check(&self.parameters, gradients)?;
        let optimizer = &self.optimizer;
        let Some(sharding) = &mut self.sharding else {
            return Ok(optimizer.own_pieces(gradients)?);
        };
        let mut own = Vec::with_capacity(optimizer.buckets.len());
        for bucket in &optimizer.buckets {
            let sum = sharding.sum(bucket, gradients)?;
            let view = |piece: &Piece| {
                let at = piece.at - bucket.own.start;
                Ok(sum.f_narrow(0, at, piece.numbers)?)
            };
            own.push(
                bucket
                    .own_pieces()
                    .map(view)
                    .collect::<Result<_, EngineError>>()?,
            );
        }
        Ok(own)
    }

    /// Exchanges whether all losses are finite, and the squares of all pieces. Returns the squares in order of
    /// parameter and position, so that their sum has the same bits on any number of processes.
    fn agree(&mut self, squares: &[f64]) -> Result<(bool, Vec<f64>), EngineError> {
        let finite = [f64::from(u8::from(self.finite))];
        let mine: Vec<f64> = finite.iter().chain(squares).copied().collect();
        let all = match &mut self.sharding {
            None => vec![mine],
            Some(sharding) => sharding.exchange(&mine)?,
        };
        let (mut finite, mut by_piece) = (true, Vec::new());
        for (rank, message) in all.iter().enumerate() {
            let pieces = self.optimizer.buckets.iter().flat_map(|bucket| {
                bucket.pieces_of(bucket.range_of(rank, 0, bucket.own_numbers()))
            });
            let pieces: Vec<Piece> = pieces.copied().collect();
            let squares = message.get(1..).unwrap_or_default();
            if squares.len() != pieces.len() {
                return Err(EngineError::OtherModel { rank });
            }
            finite &= message[0] == 1.0;
            by_piece.extend(pieces.into_iter().zip(squares.iter().copied()));
        }
        by_piece.sort_by_key(|(piece, _)| *piece);
        Ok((
            finite,
            by_piece.into_iter().map(|(_, square)| square).collect(),
        ))
    }

    /// Makes no update: weights and moments stay as they are, and the schedule continues.
    pub(crate) fn discard(&mut self, step: u64, reason: &str) -> UpdateStats {
        self.finite = true;
        self.slots.reset();
        UpdateStats {
            learning_rate: self.schedule.learning_rate(step),
            grad_norm: f64::NAN,
            skipped: Some(reason.to_owned()),
            seconds: PhaseSeconds::new(),
        }
    }

    /// Copies the parameters and their moments into the files of a checkpoint. All processes call this together; only
    /// the first one gets files.
    pub(crate) fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, EngineError> {
        snapshot(&self.parameters, &self.optimizer, self.sharding.as_mut())
    }
}

/// The gradient that autograd accumulated for a parameter; zeros if no loss depends on the parameter.
pub(crate) fn gradient_of(parameter: &Tensor) -> Result<Tensor, EngineError> {
    let gradient = parameter.f_grad()?;
    if gradient.defined() {
        Ok(gradient)
    } else {
        Ok(parameter.detach().f_zeros_like()?)
    }
}
