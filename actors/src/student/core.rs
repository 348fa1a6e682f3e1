//! The student's bookkeeping: what a step adds up to, whether its update is made, what is due after it.

mod ahead;
mod lines;

use std::time::Instant;

use crossbeam::channel::Receiver;
use ddk_mixture::{Needs, TrainingSums};
use ddk_run::{
    Measured, MicroBatchSums, RunFileError, StepPhase, UpdateStats,
    records::{EventKind, SampleLine, StepLine, StopReason},
};
use ddk_settings::Spike;
use ddk_telemetry::metrics;

use self::ahead::Ahead;
use super::StudentLane;
use crate::{
    End, Labelled, LoopState, LossWindow, MicroBatch, Outcome, PortError, RunPlan, Student, Totals,
    error::with_causes, weight_scheduler::announce,
};

/// What the micro-batches of a step add up to so far.
#[derive(Debug, Default)]
struct StepAccumulator {
    sums: MicroBatchSums,
    /// Tokens of the step's rows, by domain.
    drawn: Vec<u64>,
    /// Tokens that went through the student.
    processed: u64,
    /// The teachers' own, beside the student's: no part of the step's time, and so not among its phases in `run.jsonl`.
    teacher_seconds: f64,
    samples: Vec<SampleLine>,
    losses: TrainingSums,
}

/// The student with its books.
pub(crate) struct Core<'a, S: Student> {
    lane: &'a StudentLane<S>,
    pub(crate) student: S,
    /// The loop after the last step; none before the first.
    pub(crate) state: Option<LoopState>,
    /// The micro-batch that is due.
    pub(crate) next_sequence: u64,
    ahead: Ahead,
    /// When this process's student was ready.
    started: Instant,
    /// Sums of the processes before this one.
    before: Totals,
    totals: Totals,
    accumulator: Option<StepAccumulator>,
    student_at_start: Vec<f64>,
    /// The step whose snapshot was handed on last, and where the result of that comes.
    saved_step: Option<u64>,
    save_result: Option<Receiver<Result<(), String>>>,
    /// See [`LoopState::measured`].
    measured: Vec<Measured>,
    losses: LossWindow,
    /// See [`LoopState::skipped_steps`].
    skipped_steps: Vec<u64>,
    /// The port's busy seconds, as read last.
    busy: f64,
    last_update: Option<Instant>,
}

impl<'a, S: Student> Core<'a, S> {
    pub(crate) fn new(lane: &'a StudentLane<S>, student: S, resume: Option<LoopState>) -> Self {
        let plan = &lane.context.plan;
        let totals = match &resume {
            Some(state) => state.totals.clone(),
            None => Totals::new(plan.domains.len()),
        };
        Self {
            lane,
            busy: student.busy_seconds(),
            student,
            next_sequence: 0,
            ahead: Ahead::new(plan, resume.as_ref()),
            started: Instant::now(),
            before: totals.clone(),
            totals,
            accumulator: None,
            student_at_start: resume
                .as_ref()
                .map_or_else(Vec::new, |state| state.at_start.student.clone()),
            saved_step: resume.as_ref().map(|state| state.step),
            save_result: None,
            measured: resume
                .as_ref()
                .map_or_else(Vec::new, |state| state.measured.clone()),
            losses: resume
                .as_ref()
                .map_or_else(LossWindow::default, |state| state.losses.clone()),
            skipped_steps: resume.as_ref().map_or_else(Vec::new, |state| {
                // A step that was rolled back since has been answered.
                let counts = |step: &&u64| !plan.skip.contains(step);
                state.skipped_steps.iter().filter(counts).copied().collect()
            }),
            state: resume,
            last_update: None,
        }
    }

    fn plan(&self) -> &'a RunPlan {
        &self.lane.context.plan
    }

    pub(crate) fn step(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.step)
    }

    /// Whether a step has begun whose update is not made yet.
    pub(crate) fn within_step(&self) -> bool {
        self.accumulator.is_some()
    }

    /// Whether there is no interval to go on in.
    pub(crate) fn needs_mixture(&self) -> bool {
        self.state.as_ref().is_none_or(LoopState::at_interval_end)
    }

    /// Whether perplexities are measured now that an interval has ended: always before the first one.
    pub(crate) fn evaluation_is_due(&self) -> bool {
        if self.lane.needs == Needs::Perplexities || self.student_at_start.is_empty() {
            return true;
        }
        let (Some(state), Some(every)) = (&self.state, self.plan().evaluation_every) else {
            return false;
        };
        // Once for each multiple, at the end of the interval that it lies in.
        state.step / every > (state.interval.first_step - 1) / every
    }

    /// What the updates of the interval that has ended were made from.
    pub(crate) fn training(&self) -> TrainingSums {
        match &self.state {
            Some(state) => state.interval_losses.clone(),
            None => TrainingSums::new(self.plan().domains.len()),
        }
    }

    /// The limit that the last step has reached.
    pub(crate) fn limit_reached(&self) -> Option<StopReason> {
        let state = self.state.as_ref()?;
        if self
            .plan()
            .max_tokens
            .is_some_and(|limit| state.totals.all_tokens() >= limit)
        {
            return Some(StopReason::MaxTokens);
        }
        let last = self.plan().max_steps?;
        (state.step >= last).then_some(self.plan().max_steps_reason)
    }

    pub(crate) fn save_is_due(&self) -> bool {
        let every = self.plan().live.checkpoint_every();
        self.step().is_multiple_of(every) && !self.is_saved()
    }

    /// Whether the last step's snapshot was handed on.
    pub(crate) fn is_saved(&self) -> bool {
        self.saved_step == Some(self.step())
    }

    /// Whether the student is to be saved as it is, because an evaluation of it is on its way that may be the
    /// best so far.
    pub(crate) fn is_candidate(&self) -> bool {
        self.plan().keep_best && !self.is_saved()
    }

    /// Takes down what was measured after `step`; true where no student so far was nearer to the teacher, and
    /// a checkpoint is to be kept of this one that there is not yet.
    pub(crate) fn measured(&mut self, step: u64, student: &[f64]) -> bool {
        let teacher = self.lane.context.facts.teacher_perplexities.get();
        // Without a teacher nothing tells which student is the best.
        let Some(teacher) = teacher.filter(|teacher| step > 0 && !teacher.is_empty()) else {
            return false;
        };
        let ratios = student.iter().zip(teacher);
        let sum: f64 = ratios.map(|(student, teacher)| student / teacher).sum();
        let ratio = sum / student.len() as f64;
        // A run that resumes here has measured it before.
        self.measured.retain(|other| other.step != step);
        if !ratio.is_finite() {
            return false;
        }
        let is_best = self.measured.iter().all(|other| ratio < other.ratio);
        self.measured.push(Measured { step, ratio });
        if let Some(state) = &mut self.state {
            state.measured.clone_from(&self.measured);
        }
        is_best && self.is_candidate()
    }

    /// Waits until the snapshot that was handed on last is on the disk, or could not be written.
    pub(crate) fn await_save(&mut self) -> Result<(), String> {
        match self.save_result.take() {
            None => Ok(()),
            Some(result) => result
                .recv()
                .unwrap_or_else(|_| Err("the checkpointer has ended".to_owned())),
        }
    }

    pub(crate) fn saved(&mut self, step: u64, result: Receiver<Result<(), String>>, stall: f64) {
        self.saved_step = Some(step);
        self.save_result = Some(result);
        self.totals.save_stall_seconds += stall;
    }

    /// The port's busy seconds since this was asked last.
    fn newly_busy(&mut self) -> f64 {
        let now = self.student.busy_seconds();
        now - std::mem::replace(&mut self.busy, now)
    }

    pub(crate) fn evaluate(&mut self) -> Result<Option<Vec<f64>>, PortError> {
        let began = Instant::now();
        self.newly_busy();
        let phase = if self.student_at_start.is_empty() {
            "first evaluation of the student".to_owned()
        } else {
            format!("evaluation of the student after step {}", self.step())
        };
        let perplexities = self.measure(&phase, false)?;
        let busy = self.newly_busy();
        // The first evaluation of a process comes before its first batch.
        if self.lane.context.facts.first_sent.get().is_some() {
            self.totals.evaluation_seconds += busy;
        }
        metrics::STEP_SECONDS
            .with(&["evaluation"])
            .record(began.elapsed().as_secs_f64());
        let Some(perplexities) = perplexities else {
            return Ok(None);
        };
        let mut flops = self.plan().evaluation_flops;
        // Before the first step of a run, or of a fork whose domains are others.
        if self.student_at_start.is_empty() {
            self.student_at_start = perplexities.clone();
            flops += self.plan().teacher_evaluation_flops;
        }
        self.count_evaluation(flops);
        Ok(Some(perplexities))
    }

    /// The perplexities as they are now; who watches sees how far that is. `None` where it is told to stop.
    fn measure(&mut self, phase: &str, is_last: bool) -> Result<Option<Vec<f64>>, PortError> {
        let lane = self.lane;
        let (meter, told_to_stop) = (
            lane.line.meter(phase, "documents"),
            lane.told_to_stop(is_last),
        );
        self.student.perplexities(&|done, total| {
            lane.context.observer.on_progress(&meter.at(done, total));
            told_to_stop()
        })
    }

    fn count_evaluation(&mut self, flops: f64) {
        self.totals.evaluation_flops += flops;
        if self.lane.needs == Needs::Perplexities {
            self.totals.mixture_flops += flops;
        }
    }

    /// Perplexities at the run's end: for its result, not for a mixture.
    pub(crate) fn evaluate_last(&mut self) -> Result<Option<Vec<f64>>, PortError> {
        let perplexities = self.measure("last evaluation of the student", true)?;
        self.totals.evaluation_flops += self.plan().evaluation_flops;
        if let Some(perplexities) = &perplexities {
            self.measured(self.step(), perplexities);
        }
        Ok(perplexities)
    }

    /// Takes a micro-batch that was waited for since `began`; true where it was its step's last.
    pub(crate) fn take(
        &mut self,
        labelled: Labelled<S::Signal>,
        began: Instant,
    ) -> Result<bool, PortError> {
        let Labelled {
            batch,
            signal,
            data_wait,
            teacher_seconds,
        } = labelled;
        assert_eq!(batch.sequence, self.next_sequence);
        self.next_sequence += 1;
        let mut accumulator = match self.accumulator.take() {
            Some(accumulator) => accumulator,
            None => self.begin_step(&batch)?,
        };
        // The wait for the mixture is the boundary's.
        let waited = batch.waited_since(began);
        self.totals.data_wait_seconds += data_wait;
        // What of it was for rows; teachers that waited for them while others were at work held nobody up.
        let data = data_wait.min(waited);
        let waits = [
            (StepPhase::Data, data),
            (StepPhase::TeacherWait, waited - data),
        ];
        accumulator.sums.add_seconds(waits);
        accumulator.teacher_seconds += teacher_seconds;
        if self.plan().skip.contains(&batch.step) {
            accumulator.sums.ce = f64::NAN;
        } else {
            let sums = self.student.accumulate(&batch, signal)?;
            check_targets(&batch, sums.targets)?;
            self.totals.teacher_flops += sums.teacher_flops;
            self.totals.student_flops += sums.student_flops;
            for (sample, loss) in batch.samples.iter().zip(&sums.sequences) {
                let predictions = sample.sequence.num_targets();
                let domain = usize::from(sample.domain);
                let losses = &mut accumulator.losses;
                losses.add_row(domain, loss.ce, loss.excess, predictions);
            }
            accumulator.sums.add(sums);
            accumulator.processed += batch.tokens();
        }
        for sample in &batch.samples {
            accumulator.drawn[usize::from(sample.domain)] += sample.sequence.tokens.len() as u64;
            accumulator.samples.push(self.sample(&batch, sample));
        }
        let last = batch.last_of_step;
        self.accumulator = Some(accumulator);
        if last {
            self.end_step(&batch)?;
        }
        Ok(last)
    }

    fn begin_step(&mut self, batch: &MicroBatch) -> Result<StepAccumulator, PortError> {
        if batch.step == batch.interval.first_step
            && let Some(line) = &batch.interval.line
        {
            announce(line, &self.lane.context).map_err(unwritten)?;
        }
        if batch.step == batch.interval.first_step
            && let Some(update) = self.last_update
        {
            let seconds = update.elapsed().as_secs_f64();
            self.totals.boundary_seconds += seconds;
            metrics::BOUNDARY_SECONDS.with(&[]).record(seconds);
        }
        Ok(StepAccumulator {
            drawn: vec![0; self.plan().domains.len()],
            losses: TrainingSums::new(self.plan().domains.len()),
            ..StepAccumulator::default()
        })
    }

    fn end_step(&mut self, batch: &MicroBatch) -> Result<(), PortError> {
        let mut accumulator = self.accumulator.take().unwrap_or_default();
        let sums = &accumulator.sums;
        let predictions = batch.step_predictions as f64;
        let (ce, kl) = (sums.ce / predictions, sums.kl / predictions);
        let layer_weight = self.plan().layer_weight;
        let layer = layer_weight.map(|_| sums.layer / predictions);
        let of_layers = layer_weight.unwrap_or(0.0) * layer.unwrap_or(0.0);
        let loss = ce + self.plan().gamma * kl + of_layers;
        let update = self.update(batch.step, loss)?;
        accumulator.sums.add_seconds(update.seconds);
        let student_busy = self.newly_busy();
        self.totals.student_busy_seconds += student_busy;
        let teacher_busy_before = self.totals.teacher_busy_seconds;
        self.totals.teacher_busy_seconds =
            self.before.teacher_busy_seconds + *self.lane.context.facts.teacher_busy.lock();
        let teacher_busy = self.totals.teacher_busy_seconds - teacher_busy_before;
        let elapsed = self
            .lane
            .context
            .facts
            .first_sent
            .get()
            .map_or(0.0, |first| first.elapsed().as_secs_f64());
        let step_seconds = self.before.distill_seconds + elapsed - self.totals.distill_seconds;
        self.totals.distill_seconds = self.before.distill_seconds + elapsed;
        self.totals.run_seconds = self.before.run_seconds + self.started.elapsed().as_secs_f64();
        // Nothing is learnt from a step whose update is not made.
        let trained = match update.skipped {
            None => accumulator.drawn.clone(),
            Some(_) => vec![0; accumulator.drawn.len()],
        };
        for (sum, tokens) in self.totals.tokens.iter_mut().zip(&trained) {
            *sum += tokens;
        }
        self.last_update = Some(Instant::now());

        let line = StepLine {
            step: batch.step,
            loss,
            ce,
            kl,
            gamma: self.plan().gamma,
            layer,
            layer_weight,
            learning_rate: update.learning_rate,
            grad_norm: update.grad_norm,
            tokens: trained.iter().sum(),
            mixture_version: batch.interval.index,
            skipped: update.skipped,
            seconds: std::mem::take(&mut accumulator.sums.seconds),
        };
        self.write(&line, &accumulator, &batch.interval)
            .map_err(unwritten)?;
        self.publish(&line, &trained, step_seconds, &batch.interval);
        metrics::MODEL_TOKENS
            .with(&["student"])
            .increment(accumulator.processed);
        metrics::STEP_SECONDS
            .with(&["teacher"])
            .record(accumulator.teacher_seconds);
        let in_a_second = |amount: f64| amount / step_seconds.max(1e-9);
        let lanes = self.plan().teacher_lanes as f64;
        for (model, busy, flops) in [
            ("student", student_busy, accumulator.sums.student_flops),
            (
                "teacher",
                teacher_busy / lanes,
                accumulator.sums.teacher_flops,
            ),
        ] {
            let (busy, flops) = (in_a_second(busy), in_a_second(flops));
            metrics::MODEL_UTILISATION.with(&[model]).set(busy);
            metrics::MODEL_FLOPS.with(&[model]).set(flops);
        }
        Ok(())
    }

    /// Updates the weights, unless the step's data is passed over or its loss is a spike; asks to be rolled
    /// back where that is the only way on.
    fn update(&mut self, step: u64, loss: f64) -> Result<UpdateStats, PortError> {
        let guard = &self.plan().guard;
        if self.plan().skip.contains(&step) {
            metrics::SKIPPED_UPDATES.with(&["skip_list"]).increment(1);
            return self.student.discard(step, "its data is on the skip list");
        }
        let spike = self.losses.is_spike(loss, guard);
        metrics::SPIKES.with(&[]).increment(u64::from(spike));
        let reason = match guard.spike {
            Spike::Skip if spike => "spike",
            _ => "not_finite",
        };
        let roll_back = |first, reason| {
            Err(PortError::RollBack {
                first,
                last: step,
                reason,
            })
        };
        let told = format!("the loss of step {step} is a spike: {loss:.4}");
        let update = match guard.spike {
            Spike::RollBack if spike => return roll_back(step, told),
            Spike::Skip if spike => self.student.discard(step, "the loss is a spike")?,
            Spike::Warn if spike => {
                self.event(step, EventKind::Spike, &told)?;
                self.student.update(step)?
            }
            _ => self.student.update(step)?,
        };
        if update.skipped.is_none() {
            self.skipped_steps.clear();
            self.losses.push(loss, &self.plan().guard);
            return Ok(update);
        }
        metrics::SKIPPED_UPDATES.with(&[reason]).increment(1);
        self.skipped_steps.push(step);
        if self.skipped_steps.len() as u64 >= self.plan().guard.max_skipped {
            // Steps on the skip list may lie in between.
            let first = self.skipped_steps[0];
            return roll_back(first, "no update could be made".to_owned());
        }
        Ok(update)
    }

    /// The run's result; none where it ended before its first step.
    pub(crate) fn outcome(&self, end: End, after: Option<Vec<f64>>) -> Option<Outcome> {
        let state = self.state.clone()?;
        Some(Outcome {
            end,
            step: state.step,
            intervals: state.interval.index + 1,
            at_start: state.at_start,
            after,
            measured: self.measured.clone(),
            totals: self.totals.clone(),
        })
    }
}

/// Refuses a micro-batch for which engine and corpus count other targets: its losses would be divided by the
/// wrong number.
fn check_targets(batch: &MicroBatch, counted: u64) -> Result<(), PortError> {
    let expected = batch.num_targets();
    if counted == expected {
        return Ok(());
    }
    Err(PortError::Other(format!(
        "step {}, micro-batch {}: the engine counts {counted} predicted tokens, the corpus {expected}",
        batch.step, batch.sequence
    )))
}

fn unwritten(error: RunFileError) -> PortError {
    PortError::Other(format!("a line cannot be written: {}", with_causes(&error)))
}
