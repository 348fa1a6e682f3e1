//! The student's bookkeeping: what a step adds up to, its lines, and the state that a checkpoint holds.

mod ahead;

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use ddk_mixture::{Needs, Perplexities, TrainingSums};
use ddk_run::{
    Journal, RunFileError,
    records::{Drawn, DrawnLine, SampleLine, SampleSpan, StepLine},
};
use ddk_telemetry::metrics;
use indexmap::IndexMap;

use self::ahead::Ahead;
use super::StudentLane;
use crate::{
    End, Interval, Labelled, LoopState, LossWindow, MicroBatch, Observer, Outcome, PortError,
    RunPlan, SpikeAction, StepReport, StopReason, Student, Totals, Update, teacher::BusySum,
    weight_scheduler::announce,
};

/// What a step has gathered so far.
#[derive(Debug, Default)]
struct Gathered {
    ce_sum: f64,
    kl_sum: f64,
    layer_sum: f64,
    tokens: Vec<u64>,
    seconds: IndexMap<String, f64>,
    /// The teachers' own, beside the student's: no part of the step's time, and so not among its phases in `run.jsonl`.
    teacher_seconds: f64,
    /// Floating-point operations, as in [`Totals`].
    teacher_flops: f64,
    student_flops: f64,
    samples: Vec<SampleLine>,
    losses: TrainingSums,
}

impl Gathered {
    fn add_seconds(&mut self, by_phase: &[(&str, f64)]) {
        for (phase, seconds) in by_phase {
            *self.seconds.entry((*phase).to_owned()).or_default() += seconds;
        }
    }
}

/// The student with its books.
pub(crate) struct Core<S: Student> {
    pub(crate) student: S,
    /// The loop after the last step; none before the first.
    pub(crate) state: Option<LoopState>,
    /// The micro-batch that is due.
    pub(crate) next_sequence: u64,
    ahead: Ahead,
    plan: Arc<RunPlan>,
    needs: Needs,
    journal: Arc<Journal>,
    observer: Arc<dyn Observer>,
    teacher_busy: Arc<BusySum>,
    teacher_perplexities: Arc<OnceLock<Vec<f64>>>,
    first_sent: Arc<OnceLock<Instant>>,
    /// When this process's student was ready.
    started: Instant,
    /// Sums of the processes before this one.
    before: Totals,
    totals: Totals,
    gathered: Option<Gathered>,
    student_at_start: Vec<f64>,
    saved_step: Option<u64>,
    losses: LossWindow,
    skipped_in_row: u64,
    /// The port's busy seconds, as read last.
    busy: f64,
    last_update: Option<Instant>,
}

impl<S: Student> Core<S> {
    pub(crate) fn new(lane: &StudentLane<S>, student: S) -> Self {
        let resume = lane.resume.clone();
        let totals = match &resume {
            Some(state) => state.totals.clone(),
            None => Totals::new(lane.plan.domains.len()),
        };
        Self {
            busy: student.busy_seconds(),
            student,
            next_sequence: 0,
            ahead: Ahead::new(&lane.plan, resume.as_ref()),
            plan: Arc::clone(&lane.plan),
            needs: lane.needs,
            journal: Arc::clone(&lane.journal),
            observer: Arc::clone(&lane.observer),
            teacher_busy: Arc::clone(&lane.teacher_busy),
            teacher_perplexities: Arc::clone(&lane.teacher_perplexities),
            first_sent: Arc::clone(&lane.first_sent),
            started: Instant::now(),
            before: totals.clone(),
            totals,
            gathered: None,
            student_at_start: resume
                .as_ref()
                .map_or_else(Vec::new, |state| state.at_start.student.clone()),
            saved_step: resume.as_ref().map(|state| state.step),
            losses: resume
                .as_ref()
                .map_or_else(LossWindow::default, |state| state.losses.clone()),
            skipped_in_row: resume.as_ref().map_or(0, |state| state.skipped_in_row),
            state: resume,
            last_update: None,
        }
    }

    pub(crate) fn step(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.step)
    }

    /// Whether a step has begun whose update is not made yet.
    pub(crate) fn within_step(&self) -> bool {
        self.gathered.is_some()
    }

    /// Whether there is no interval to go on in.
    pub(crate) fn needs_mixture(&self) -> bool {
        self.state.as_ref().is_none_or(LoopState::at_interval_end)
    }

    /// Whether perplexities are measured now that an interval has ended: always before the first one.
    pub(crate) fn evaluation_is_due(&self) -> bool {
        if self.needs == Needs::Perplexities || self.student_at_start.is_empty() {
            return true;
        }
        let (Some(state), Some(every)) = (&self.state, self.plan.evaluation_every) else {
            return false;
        };
        // Once for each multiple, at the end of the interval that it lies in.
        state.step / every > (state.interval.first_step - 1) / every
    }

    /// What the updates of the interval that has ended were made from.
    pub(crate) fn training(&self) -> TrainingSums {
        match &self.state {
            Some(state) => state.interval_losses.clone(),
            None => TrainingSums::new(self.plan.domains.len()),
        }
    }

    /// The limit that the last step has reached.
    pub(crate) fn limit_reached(&self) -> Option<StopReason> {
        let state = self.state.as_ref()?;
        if self
            .plan
            .max_tokens
            .is_some_and(|limit| state.totals.all_tokens() >= limit)
        {
            return Some(StopReason::MaxTokens);
        }
        let last = self.plan.max_steps?;
        (state.step >= last).then_some(self.plan.max_steps_reason)
    }

    pub(crate) fn save_is_due(&self) -> bool {
        let every = self.plan.live.checkpoint_every();
        self.step().is_multiple_of(every) && !self.is_saved()
    }

    pub(crate) fn is_saved(&self) -> bool {
        self.saved_step == Some(self.step())
    }

    pub(crate) fn saved(&mut self, step: u64, stall: f64) {
        self.saved_step = Some(step);
        self.totals.save_stall_seconds += stall;
    }

    /// The port's busy seconds since this was asked last.
    fn newly_busy(&mut self) -> f64 {
        let now = self.student.busy_seconds();
        now - std::mem::replace(&mut self.busy, now)
    }

    pub(crate) fn evaluate(
        &mut self,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<f64>>, PortError> {
        let began = Instant::now();
        self.newly_busy();
        let perplexities = self.student.perplexities(cancelled)?;
        let busy = self.newly_busy();
        // The first evaluation of a process comes before its first batch.
        if self.first_sent.get().is_some() {
            self.totals.evaluation_seconds += busy;
        }
        metrics::STEP_SECONDS
            .with(&["evaluation"])
            .record(began.elapsed().as_secs_f64());
        let Some(perplexities) = perplexities else {
            return Ok(None);
        };
        let mut flops = self.plan.evaluation_flops;
        // Before the first step of a run, or of a fork whose domains are others.
        if self.student_at_start.is_empty() {
            self.student_at_start = perplexities.clone();
            flops += self.plan.teacher_evaluation_flops;
        }
        self.count_evaluation(flops);
        Ok(Some(perplexities))
    }

    fn count_evaluation(&mut self, flops: f64) {
        self.totals.evaluation_flops += flops;
        if self.needs == Needs::Perplexities {
            self.totals.mixture_flops += flops;
        }
    }

    /// Perplexities at the run's end: for its result, not for a mixture.
    pub(crate) fn evaluate_last(&mut self) -> Result<Option<Vec<f64>>, PortError> {
        let perplexities = self.student.perplexities(&|| false)?;
        self.totals.evaluation_flops += self.plan.evaluation_flops;
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
        debug_assert_eq!(batch.sequence, self.next_sequence);
        self.next_sequence += 1;
        let mut gathered = match self.gathered.take() {
            Some(gathered) => gathered,
            None => self.begin_step(&batch)?,
        };
        // Until the interval was set, the wait was for the mixture (counted as the boundary's).
        let waited = Instant::now()
            .saturating_duration_since(began.max(batch.interval_set))
            .as_secs_f64();
        self.totals.data_wait_seconds += data_wait;
        let wait = (waited - data_wait).max(0.0);
        gathered.add_seconds(&[("data", data_wait), ("teacher_wait", wait)]);
        gathered.teacher_seconds += teacher_seconds;
        if self.plan.skip.contains(&batch.step) {
            gathered.ce_sum = f64::NAN;
        } else {
            let loss = self.student.accumulate(&batch, signal)?;
            gathered.add_seconds(&loss.seconds);
            self.totals.teacher_flops += loss.teacher_flops;
            self.totals.student_flops += loss.student_flops;
            gathered.teacher_flops += loss.teacher_flops;
            gathered.student_flops += loss.student_flops;
            gathered.ce_sum += loss.ce_sum;
            gathered.kl_sum += loss.kl_sum;
            for (row, of_row) in batch.rows.iter().zip(&loss.rows) {
                let predictions = row.drawn.row.predictions();
                let domain = usize::from(row.domain);
                gathered
                    .losses
                    .add_row(domain, of_row.ce, of_row.excess, predictions);
            }
            gathered.layer_sum += loss.layer_sum;
        }
        for row in &batch.rows {
            gathered.tokens[usize::from(row.domain)] += row.drawn.row.tokens.len() as u64;
            gathered.samples.push(self.sample(&batch, row));
        }
        let last = batch.last_of_step;
        self.gathered = Some(gathered);
        if last {
            self.end_step(&batch)?;
        }
        Ok(last)
    }

    fn begin_step(&mut self, batch: &MicroBatch) -> Result<Gathered, PortError> {
        if batch.step == batch.interval.first_step
            && let Some(line) = &batch.interval.line
        {
            announce(line, &self.journal, &*self.observer).map_err(unwritten)?;
        }
        if batch.step == batch.interval.first_step
            && let Some(update) = self.last_update
        {
            let seconds = update.elapsed().as_secs_f64();
            self.totals.boundary_seconds += seconds;
            metrics::BOUNDARY_SECONDS.with(&[]).record(seconds);
        }
        Ok(Gathered {
            tokens: vec![0; self.plan.domains.len()],
            losses: TrainingSums::new(self.plan.domains.len()),
            ..Gathered::default()
        })
    }

    fn sample(&self, batch: &MicroBatch, row: &crate::batch::BatchRow) -> SampleLine {
        let spans = row.drawn.row.spans.iter().map(|span| SampleSpan {
            document: span.document,
            offset: span.offset,
            tokens: span.tokens,
        });
        SampleLine {
            step: batch.step,
            row: row.drawn.row.row,
            domain: self.plan.domains[usize::from(row.domain)].clone(),
            mixture_version: batch.interval.index,
            pass: row.drawn.pass,
            spans: spans.collect(),
        }
    }

    fn end_step(&mut self, batch: &MicroBatch) -> Result<(), PortError> {
        let mut gathered = self.gathered.take().unwrap_or_default();
        let predictions = batch.step_predictions as f64;
        let (ce, kl) = (gathered.ce_sum / predictions, gathered.kl_sum / predictions);
        let layer_weight = self.plan.layer_weight;
        let layer = layer_weight.map(|_| gathered.layer_sum / predictions);
        let of_layers = layer_weight.unwrap_or(0.0) * layer.unwrap_or(0.0);
        let loss = ce + self.plan.gamma * kl + of_layers;
        let update = self.update(batch.step, loss)?;
        gathered.add_seconds(&update.seconds);
        let student_busy = self.newly_busy();
        self.totals.student_busy_seconds += student_busy;
        let teacher_busy_before = self.totals.teacher_busy_seconds;
        self.totals.teacher_busy_seconds =
            self.before.teacher_busy_seconds + self.teacher_busy.get();
        let teacher_busy = self.totals.teacher_busy_seconds - teacher_busy_before;
        let elapsed = self
            .first_sent
            .get()
            .map_or(0.0, |first| first.elapsed().as_secs_f64());
        let step_seconds = self.before.distill_seconds + elapsed - self.totals.distill_seconds;
        self.totals.distill_seconds = self.before.distill_seconds + elapsed;
        self.totals.run_seconds = self.before.run_seconds + self.started.elapsed().as_secs_f64();
        for (sum, tokens) in self.totals.tokens.iter_mut().zip(&gathered.tokens) {
            *sum += tokens;
        }
        self.last_update = Some(Instant::now());

        let line = StepLine {
            step: batch.step,
            loss,
            ce,
            kl,
            gamma: self.plan.gamma,
            layer,
            layer_weight,
            learning_rate: update.learning_rate,
            grad_norm: update.grad_norm,
            tokens: gathered.tokens.iter().sum(),
            mixture_version: batch.interval.index,
            skipped: update.skipped,
            seconds: std::mem::take(&mut gathered.seconds),
        };
        self.write(&line, &gathered, &batch.interval)
            .map_err(unwritten)?;
        self.publish(&line, &gathered.tokens, step_seconds, &batch.interval);
        metrics::STEP_SECONDS
            .with(&["teacher"])
            .record(gathered.teacher_seconds);
        let in_a_second = |amount: f64| amount / step_seconds.max(1e-9);
        let lanes = self.plan.teacher_lanes as f64;
        for (model, busy, flops) in [
            ("student", student_busy, gathered.student_flops),
            ("teacher", teacher_busy / lanes, gathered.teacher_flops),
        ] {
            let (busy, flops) = (in_a_second(busy), in_a_second(flops));
            metrics::MODEL_UTILISATION.with(&[model]).set(busy);
            metrics::MODEL_FLOPS.with(&[model]).set(flops);
        }
        Ok(())
    }

    /// Updates the weights, unless the step's data is passed over or its loss is a spike; asks to be rolled back where that is
    /// the only way on.
    fn update(&mut self, step: u64, loss: f64) -> Result<Update, PortError> {
        let guard = &self.plan.guard;
        if self.plan.skip.contains(&step) {
            metrics::SKIPPED_UPDATES.with(&["skip_list"]).increment(1);
            return self.student.discard(step, "its data is on the skip list");
        }
        let spike = self.losses.is_spike(loss, guard);
        metrics::SPIKES.with(&[]).increment(u64::from(spike));
        let reason = match guard.spike {
            SpikeAction::Skip if spike => "spike",
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
            SpikeAction::RollBack if spike => return roll_back(step, told),
            SpikeAction::Skip if spike => self.student.discard(step, "the loss is a spike")?,
            SpikeAction::Warn if spike => {
                self.event(step, "spike", &told)?;
                self.student.update(step)?
            }
            _ => self.student.update(step)?,
        };
        if update.skipped.is_none() {
            self.skipped_in_row = 0;
            self.losses.push(loss, &self.plan.guard);
            return Ok(update);
        }
        metrics::SKIPPED_UPDATES.with(&[reason]).increment(1);
        self.skipped_in_row += 1;
        if self.skipped_in_row >= self.plan.guard.max_skipped {
            let first = step + 1 - self.skipped_in_row;
            return roll_back(first, "no update could be made".to_owned());
        }
        Ok(update)
    }

    fn event(&self, step: u64, kind: &str, message: &str) -> Result<(), PortError> {
        let event = self.journal.event(step, kind, message);
        let event = event.map_err(unwritten)?;
        self.observer.on_event(&event);
        Ok(())
    }

    /// Writes the step's lines, then takes down the state that a checkpoint of this step holds.
    fn write(
        &mut self,
        line: &StepLine,
        gathered: &Gathered,
        interval: &Interval,
    ) -> Result<(), RunFileError> {
        if let Some(reason) = &line.skipped {
            let message = format!("the update of step {} was not made: {reason}", line.step);
            self.observer
                .on_event(&self.journal.event(line.step, "skipped", &message)?);
        }
        self.journal.step(line)?;
        self.journal.samples(&gathered.samples)?;
        let domains = self.plan.domains.len();
        let same_interval = self
            .state
            .as_ref()
            .filter(|state| state.interval.index == interval.index);
        let (mut interval_tokens, mut interval_losses) = match same_interval {
            Some(state) => (state.interval_tokens.clone(), state.interval_losses.clone()),
            None => (vec![0; domains], TrainingSums::new(domains)),
        };
        for (sum, tokens) in interval_tokens.iter_mut().zip(&gathered.tokens) {
            *sum += tokens;
        }
        // What was not learnt from moves no mixture.
        if line.skipped.is_none() {
            interval_losses.add(&gathered.losses);
        }
        if line.step == interval.last_step() {
            self.journal
                .drawn(&self.drawn(interval, &interval_tokens))?;
        }
        let student = self.student_at_start.clone();
        let teacher = self.teacher_perplexities.get().cloned().unwrap_or_default();
        self.state = Some(LoopState {
            step: line.step,
            interval: interval.clone(),
            at_start: Perplexities { student, teacher },
            ahead: self.ahead.known(),
            interval_tokens,
            interval_losses,
            totals: self.totals.clone(),
            lengths: self.journal.lengths(),
            losses: self.losses.clone(),
            skipped_in_row: self.skipped_in_row,
        });
        Ok(())
    }

    fn drawn(&self, interval: &Interval, tokens: &[u64]) -> DrawnLine {
        let ends = interval.cursors_at_end(&self.plan.domain_rows);
        let drawn = self.plan.domains.iter().enumerate().map(|(domain, name)| {
            let passes = ends[domain].passes(self.plan.domain_rows[domain]);
            metrics::PASSES.with(&[name]).set(passes);
            let drawn = Drawn {
                rows: interval.counts[domain],
                tokens: tokens[domain],
                passes,
            };
            (name.clone(), drawn)
        });
        DrawnLine {
            interval: interval.index,
            drawn: drawn.collect(),
        }
    }

    fn publish(&self, line: &StepLine, tokens: &[u64], step_seconds: f64, interval: &Interval) {
        metrics::STEPS.with(&[]).increment(1);
        metrics::STEP.with(&[]).set(line.step as f64);
        for (domain, tokens) in self.plan.domains.iter().zip(tokens) {
            metrics::TOKENS.with(&[domain]).increment(*tokens);
        }
        metrics::MODEL_TOKENS
            .with(&["student"])
            .increment(line.tokens);
        metrics::TOKENS_PER_SECOND
            .with(&[])
            .set(line.tokens as f64 / step_seconds.max(1e-9));
        metrics::WHOLE_STEP_SECONDS.with(&[]).record(step_seconds);
        if let Some(state) = &self.state {
            let sum = state.interval_tokens.iter().sum::<u64>().max(1) as f64;
            for (domain, tokens) in self.plan.domains.iter().zip(&state.interval_tokens) {
                metrics::REALISED.with(&[domain]).set(*tokens as f64 / sum);
            }
        }
        metrics::CHECKPOINT_EVERY
            .with(&[])
            .set(self.plan.live.checkpoint_every() as f64);
        let terms = [
            ("total", Some(line.loss)),
            ("ce", Some(line.ce)),
            ("kl", Some(line.kl)),
            ("layer", line.layer),
        ];
        for (term, value) in terms {
            if let Some(value) = value {
                metrics::LOSS.with(&[term]).set(value);
            }
        }
        metrics::GRADIENT_NORM.with(&[]).set(line.grad_norm);
        metrics::LEARNING_RATE.with(&[]).set(line.learning_rate);
        for (phase, seconds) in &line.seconds {
            metrics::STEP_SECONDS.with(&[phase]).record(*seconds);
        }
        let names = self.plan.domains.iter().map(String::as_str);
        self.observer.on_step(&StepReport {
            line,
            limit: self.plan.max_steps,
            weights: names.zip(interval.weights.iter().copied()).collect(),
            totals: &self.totals,
        });
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
            totals: self.totals.clone(),
        })
    }
}

fn unwritten(error: RunFileError) -> PortError {
    PortError::Other(format!("a line cannot be written: {error}"))
}
