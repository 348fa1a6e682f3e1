//! A step of the student: its micro-batches, and whether its update is made.

use std::{mem, time::Instant};

use ddk_mixture::TrainingSums;
use ddk_run::{
    StepPhase, UpdateStats,
    records::{EventKind, StepRecord},
};
use ddk_settings::SpikeAction;
use ddk_telemetry::metrics;

use super::{StepLoop, Taken, took, unwritten, work::StepAccumulator};
use crate::{
    LabeledBatch, MicroBatch, PortError, StepDraw, Student, mixture::announce, worker::Exit,
};

impl<S: Student> StepLoop<'_, S> {
    /// Trains on a micro-batch. `began` is when the wait for it began.
    pub(crate) fn take(
        &mut self,
        labeled: LabeledBatch<S::TeacherOutput>,
        began: Instant,
    ) -> Result<Taken, Exit> {
        let (batch, data_wait) = (labeled.batch, labeled.data_wait);
        assert_eq!(batch.sequence, self.next_sequence);
        self.next_sequence += 1;
        let mut accumulator = match self.accumulator.take() {
            Some(accumulator) => accumulator,
            None => self.begin_step(&batch)?,
        };
        // A wait for the mixture counts as boundary time instead.
        let waited = batch.waited_since(began);
        self.totals.data_wait_seconds += data_wait;
        // The part of the wait that was for data. A teacher that waits for data while others label does not delay the
        // student.
        let data = data_wait.min(waited);
        let teacher = waited - data;
        let waits = [(StepPhase::Data, data), (StepPhase::TeacherWait, teacher)];
        accumulator.sums.add_seconds(waits);
        accumulator.waited += waited;
        accumulator.teacher_seconds += labeled.teacher_seconds;
        let mut sums = None;
        if !self.plan.skip.contains(&batch.step()) {
            let mut counted = self.student.accumulate(&batch, labeled.signal)?;
            check_targets(&batch, counted.targets)?;
            accumulator
                .sums
                .add_seconds(mem::take(&mut counted.seconds));
            sums = Some(counted);
        }
        accumulator.batches.push((batch.rows.clone(), sums));
        if batch.last_of_step {
            return self.end_step(&batch.draw, accumulator);
        }
        self.accumulator = Some(accumulator);
        Ok(Taken::Part)
    }

    fn begin_step(&mut self, batch: &MicroBatch) -> Result<StepAccumulator, PortError> {
        if batch.step() == batch.interval().first_step {
            if let Some(line) = &batch.interval().line {
                announce(line, self.context).map_err(unwritten)?;
                for advice in self.advisor.mixture(line) {
                    let advice = self.context.event(line.step, EventKind::Advice, &advice);
                    advice.map_err(unwritten)?;
                }
            }
            if let Some(update) = self.last_update {
                let seconds = update.elapsed().as_secs_f64();
                self.totals.boundary_seconds += seconds;
                metrics::UPDATE_SECONDS.with(&[]).record(seconds);
            }
        }
        Ok(StepAccumulator {
            drawn: vec![0; self.plan.domains.len()],
            losses: TrainingSums::new(self.plan.domains.len()),
            ..StepAccumulator::default()
        })
    }

    fn end_step(
        &mut self,
        draw: &StepDraw,
        mut accumulator: StepAccumulator,
    ) -> Result<Taken, Exit> {
        let Some(batches) = self.join(draw, &mut accumulator)? else {
            return Ok(Taken::GaveUp);
        };
        self.add_up(draw, batches, &mut accumulator);
        let sums = &accumulator.sums;
        let predictions = draw.predictions as f64;
        let (ce_loss, kd_loss) = (sums.ce / predictions, sums.kl / predictions);
        let layer_weight = self.plan.layer_weight;
        let layer_loss = layer_weight.map(|_| sums.layer / predictions);
        let of_layers = layer_weight.unwrap_or(0.0) * layer_loss.unwrap_or(0.0);
        let loss = ce_loss + self.plan.gamma * kd_loss + of_layers;
        let update = self.update(draw.step, loss)?;
        (self.last_loss, self.last_norm) = (loss, update.grad_norm);
        let exchange = update.seconds.get(&StepPhase::Exchange);
        self.last_exchange += exchange.copied().unwrap_or_default();
        accumulator.sums.add_seconds(update.seconds);
        let student_busy = self.newly_busy();
        let (totals, before, facts) = (&mut self.totals, &self.before, &self.context.facts);
        totals.student_busy_seconds += student_busy;
        let teacher = before.teacher_busy_seconds + *facts.teacher_busy.lock();
        let teacher_busy = teacher - mem::replace(&mut totals.teacher_busy_seconds, teacher);
        let elapsed = |since: &Instant| since.elapsed().as_secs_f64();
        let distill = before.distill_seconds + facts.first_sent.get().map_or(0.0, elapsed)
            - self.paused.as_secs_f64();
        let step_seconds = distill - mem::replace(&mut totals.distill_seconds, distill);
        totals.run_seconds = before.run_seconds + elapsed(&self.started);
        // Tokens of a step without an update do not count as trained.
        let trained = match update.skipped {
            None => accumulator.drawn.clone(),
            Some(_) => vec![0; accumulator.drawn.len()],
        };
        for (sum, tokens) in totals.tokens.iter_mut().zip(&trained) {
            *sum += tokens;
        }
        self.last_update = Some(Instant::now());

        let line = StepRecord {
            step: draw.step,
            loss,
            ce_loss,
            kd_loss,
            gamma: self.plan.gamma,
            layer_loss,
            layer_weight,
            learning_rate: update.learning_rate,
            grad_norm: update.grad_norm,
            tokens: trained.iter().sum(),
            interval: draw.interval.index,
            skipped: update.skipped,
            seconds: mem::take(&mut accumulator.sums.seconds),
        };
        self.write(&line, &accumulator, &draw.interval)
            .map_err(unwritten)?;
        self.publish(&line, &trained, step_seconds);
        metrics::MODEL_TOKENS
            .with(&["student"])
            .increment(accumulator.processed);
        took("teacher", accumulator.teacher_seconds);
        let in_a_second = |amount: f64| amount / step_seconds.max(1e-9);
        let (sums, replica_busy) = (accumulator.sums, teacher_busy / self.plan.replicas as f64);
        for (model, busy, flops) in [
            ("student", student_busy, sums.student_flops),
            ("teacher", replica_busy, sums.teacher_flops),
        ] {
            let (busy, flops) = (in_a_second(busy), in_a_second(flops));
            metrics::MODEL_UTILIZATION.with(&[model]).set(busy);
            metrics::MODEL_FLOPS.with(&[model]).set(flops);
        }
        Ok(Taken::Step)
    }

    /// Updates the weights. Discards the gradients instead if the step is on the skip list, or if its loss is a spike
    /// to skip. Requests a rewind if a spike must be rolled back or too many consecutive steps were skipped.
    fn update(&mut self, step: u64, loss: f64) -> Result<UpdateStats, PortError> {
        let recovery = &self.plan.recovery;
        if self.plan.skip.contains(&step) {
            metrics::SKIPPED_UPDATES.with(&["skip_list"]).increment(1);
            return self.student.discard(step, "its data is on the skip list");
        }
        let spike = self.state.loss_history.is_spike(loss, recovery);
        metrics::SPIKES.with(&[]).increment(u64::from(spike));
        let roll_back = |first, reason| PortError::RollBack {
            steps: first..=step,
            reason,
        };
        let told = format!("the loss of step {step} is a spike: {loss:.4}");
        let (update, reason) = match recovery.spike_action {
            SpikeAction::RollBack if spike => return Err(roll_back(step, told)),
            SpikeAction::Skip if spike => {
                let update = self.student.discard(step, "its loss is a spike")?;
                (update, "spike")
            }
            how => {
                if spike && how == SpikeAction::Warn {
                    let event = self.context.event(step, EventKind::Spike, &told);
                    event.map_err(unwritten)?;
                }
                (self.student.update(step)?, "not_finite")
            }
        };
        if update.skipped.is_none() {
            self.state.consecutive_skips.clear();
            self.state.loss_history.push(loss, recovery);
            return Ok(update);
        }
        metrics::SKIPPED_UPDATES.with(&[reason]).increment(1);
        let skipped = &mut self.state.consecutive_skips;
        skipped.push(step);
        if skipped.len() as u64 >= recovery.max_consecutive_skips {
            // Steps on the skip list may lie in between.
            return Err(roll_back(skipped[0], "no update could be made".to_owned()));
        }
        Ok(update)
    }
}

/// Rejects a micro-batch if the engine and the corpus count different numbers of predicted tokens, because its losses
/// would be divided by the wrong number.
fn check_targets(batch: &MicroBatch, counted: u64) -> Result<(), PortError> {
    let expected = batch.num_targets();
    if counted == expected {
        return Ok(());
    }
    Err(PortError::Other(format!(
        "step {}, micro-batch {}: the engine counts {counted} predicted tokens, the corpus {expected}",
        batch.step(),
        batch.sequence
    )))
}
