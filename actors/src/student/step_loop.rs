//! The student's bookkeeping: the sums of a step, whether its update is made, and what is due after it.

mod lines;
mod step;
mod work;

use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, bounded};
use ddk_mixture::{Needs, gap};
use ddk_run::{
    Measured, RunFileError, checkpoint_bytes_written,
    control::Outcome as Answered,
    records::StopReason,
    texts::{TextLine, Writer},
};
use ddk_telemetry::{Meter, metrics};
use ractor::RpcReplyPort;

use self::work::StepAccumulator;
use super::StudentWorker;
use crate::{
    End, LoopState, Outcome, PortError, RunPlan, Student, Totals,
    advice::Advisor,
    agreement::Point,
    checkpointer::SaveRequest,
    error::with_causes,
    interval::Evaluation,
    teacher::EvaluatedCopy,
    worker::{Context, Exit},
};

/// The evaluation that the current interval began with if mixtures lag. It decides the next mixture.
#[derive(Debug, Clone, PartialEq)]
enum Ahead {
    /// Mixtures do not lag, or nothing has been measured yet.
    None,
    /// A copy of the student is being evaluated.
    Awaited,
    /// The result is known; empty if no evaluation was due.
    Known(Evaluation),
}

/// What the student took from its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// A command, or a micro-batch that is not the last of its step.
    Part,
    /// The last micro-batch of a step, which is done.
    Step,
    /// A step was given up, here or on another rank. It changed nothing.
    GaveUp,
}

/// The student and its bookkeeping.
pub(crate) struct StepLoop<'a, S: Student> {
    worker: &'a StudentWorker<S>,
    context: &'a Context,
    plan: &'a RunPlan,
    student: S,
    /// The state of the training loop after the last step.
    pub(crate) state: LoopState,
    /// The number of the next micro-batch.
    pub(crate) next_sequence: u64,
    ahead: Ahead,
    /// Whether rank 0 still measures the teacher's perplexities, for all ranks.
    pub(crate) awaits_teacher: bool,
    /// The result of a copy's evaluation that came with the last exchange of several ranks.
    pub(crate) arrived: Option<EvaluatedCopy>,
    /// What the last update told, for comparing the ranks.
    last_loss: f64,
    last_norm: f64,
    /// Seconds of the last exchange of a step.
    last_exchange: f64,
    /// The student's busy seconds at that exchange.
    busy_at_exchange: f64,
    /// When this process's student became ready.
    started: Instant,
    /// Totals of the processes before this one.
    before: Totals,
    /// The totals in `state`, plus what came after its step.
    totals: Totals,
    accumulator: Option<StepAccumulator>,
    /// The step of the last snapshot sent. `save_result` receives whether it was saved.
    saved_step: u64,
    save_result: Option<Receiver<Result<(), String>>>,
    /// The student's busy seconds at the last reading.
    busy: f64,
    last_update: Option<Instant>,
    advisor: Advisor,
    /// How long this process has been paused since its first micro-batch.
    paused: Duration,
}

impl<'a, S: Student> StepLoop<'a, S> {
    pub(crate) fn new(worker: &'a StudentWorker<S>, student: S, mut state: LoopState) -> Self {
        let plan = &worker.context.plan;
        // Skipped steps that have since been rolled back no longer count.
        state
            .consecutive_skips
            .retain(|step| !plan.skip.contains(step));
        let ahead = state.lagged_evaluation.clone();
        let ahead = ahead.filter(|_| plan.lag > 0);
        Self {
            worker,
            context: &worker.context,
            plan,
            busy: student.busy_seconds(),
            busy_at_exchange: student.busy_seconds(),
            awaits_teacher: false,
            arrived: None,
            last_loss: f64::NAN,
            last_norm: f64::NAN,
            last_exchange: 0.0,
            student,
            next_sequence: 0,
            ahead: ahead.map_or(Ahead::None, Ahead::Known),
            started: Instant::now(),
            before: state.totals.clone(),
            totals: state.totals.clone(),
            accumulator: None,
            saved_step: state.step,
            save_result: None,
            state,
            last_update: None,
            advisor: Advisor::default(),
            paused: Duration::ZERO,
        }
    }

    pub(crate) fn step(&self) -> u64 {
        self.state.step
    }

    /// Whether a step has begun and its update is still to come.
    pub(crate) fn within_step(&self) -> bool {
        self.accumulator.is_some()
    }

    /// Whether to measure perplexities at this end of an interval: always before the first interval.
    pub(crate) fn evaluation_is_due(&self) -> bool {
        let state = &self.state;
        // Once for each multiple of `every`, at the end of the interval that contains it.
        let lies_in = |every: u64| state.step / every > (state.interval.first_step - 1) / every;
        self.needs_perplexities()
            || state.baseline.student.is_empty()
            || self.plan.evaluation_every.is_some_and(lies_in)
    }

    fn needs_perplexities(&self) -> bool {
        self.state.interval.policy.needs() == Needs::Perplexities
    }

    /// The limit that the last step has reached, if any.
    pub(crate) fn limit_reached(&self) -> Option<StopReason> {
        let (state, plan) = (&self.state, self.plan);
        let tokens = state.totals.all_tokens();
        if plan.max_tokens.is_some_and(|limit| tokens >= limit) {
            return Some(StopReason::MaxTokens);
        }
        (state.step >= plan.max_steps?).then_some(plan.max_steps_reason)
    }

    pub(crate) fn save_is_due(&self) -> bool {
        let every = self.plan.live.get(|settings| settings.checkpoint.interval);
        self.step().is_multiple_of(every) && !self.is_saved()
    }

    /// Whether the last step's snapshot was sent.
    fn is_saved(&self) -> bool {
        self.saved_step == self.step()
    }

    /// Whether the student needs a checkpoint now in case its evaluation is the best so far.
    pub(crate) fn is_candidate(&self) -> bool {
        self.plan.keep_best && !self.is_saved()
    }

    /// Records the evaluation after `step`. Returns true if its mean gap is the smallest so far and the student still
    /// needs a checkpoint.
    pub(crate) fn measured(&mut self, step: u64, student: &[f64]) -> bool {
        let teacher = self.context.facts.teacher_perplexities.get();
        // Without a teacher there is no gap.
        let Some(teacher) = teacher.filter(|teacher| step > 0 && !teacher.is_empty()) else {
            return false;
        };
        let both = student.iter().zip(teacher);
        let sum: f64 = both.map(|(student, teacher)| gap(*student, *teacher)).sum();
        let gap = sum / student.len() as f64;
        // A run that resumes here has measured this step before.
        let measured = &mut self.state.measured;
        measured.retain(|other| other.step != step);
        if !gap.is_finite() {
            return false;
        }
        let is_best = measured.iter().all(|other| gap < other.gap);
        measured.push(Measured { step, gap });
        is_best && self.is_candidate()
    }

    /// Sends a snapshot to the checkpointer. Waits only for the snapshot and for a save that is still in flight.
    /// `asked` receives the outcome. Of several ranks, all make the snapshot, and rank 0 saves it.
    pub(crate) fn save(&mut self, asked: Option<RpcReplyPort<Answered>>) -> Result<(), Exit> {
        let began = Instant::now();
        if self.context.peers.is_some() {
            // The checkpointer takes one snapshot at a time, and the other ranks must not wait in an exchange for it.
            let _ = self.await_save()?;
        }
        let files = self.student.snapshot()?;
        if self.context.rank() == 0 {
            let (reply, result) = bounded(1);
            let request = SaveRequest {
                state: self.state.clone(),
                files,
                reply,
                asked,
            };
            let sent = self.worker.saves.send(request);
            sent.map_err(|_| PortError::Other("the checkpointer has ended".to_owned()))?;
            self.save_result = Some(result);
        }
        let stall = began.elapsed().as_secs_f64();
        took("save", stall);
        self.saved_step = self.step();
        self.totals.save_stall_seconds += stall;
        Ok(())
    }

    /// Waits until the last completed step is saved on disk, because a run must not end without it. If its save failed
    /// while training continued, saves it again.
    pub(crate) fn save_last(&mut self) -> Result<(), Exit> {
        let _meter = saving(self.plan.checkpoint_bytes);
        if self.is_saved() && self.await_save()?.is_ok() {
            return Ok(());
        }
        self.save(None)?;
        let what = "cannot save the last checkpoint (the earlier ones are kept)";
        let saved = self.await_save()?;
        Ok(saved.map_err(|error| PortError::Other(format!("{what}: {error}")))?)
    }

    /// Waits until the last snapshot sent is on disk, or its save has failed. All ranks learn how rank 0's save ended.
    fn await_save(&mut self) -> Result<Result<(), String>, Exit> {
        let (worker, place) = (self.worker, (self.step(), Point::Save));
        let result = self.save_result.take();
        let together = self.context.peers.is_some();
        let saved = worker.await_first(place, false, |until| {
            let Some(result) = &result else {
                return Ok(Some(Ok(())));
            };
            worker.line.waiting_for_output();
            let saved = if together {
                result.recv_deadline(until)
            } else {
                result.recv().map_err(RecvTimeoutError::from)
            };
            worker.line.computing();
            Ok(match saved {
                Ok(saved) => Some(saved),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    Some(Err("the checkpointer has ended".to_owned()))
                }
            })
        })?;
        Ok(saved.unwrap_or(Ok(())))
    }

    /// The student's busy seconds since the last call.
    fn newly_busy(&mut self) -> f64 {
        let now = self.student.busy_seconds();
        now - std::mem::replace(&mut self.busy, now)
    }

    pub(crate) fn evaluate(&mut self) -> Result<Option<Vec<f64>>, PortError> {
        let began = Instant::now();
        self.newly_busy();
        let is_first = self.state.baseline.student.is_empty();
        let phase = if is_first {
            "first evaluation of the student".to_owned()
        } else {
            format!("evaluation of the student after step {}", self.step())
        };
        let perplexities = self.measure(&phase)?;
        let busy = self.newly_busy();
        // A process's first evaluation comes before its first batch, so it is not part of `distill_seconds`.
        if self.context.facts.first_sent.get().is_some() {
            self.totals.evaluation_seconds += busy;
        }
        took("evaluation", began.elapsed().as_secs_f64());
        if let Some(perplexities) = &perplexities {
            self.write_texts()?;
            let mut flops = self.plan.evaluation_flops;
            // Before the first step of a run, or of a fork that measures its baseline again.
            if is_first {
                self.state.baseline.student.clone_from(perplexities);
                flops += self.plan.teacher_evaluation_flops;
                self.totals.teacher_evaluation_flops += self.plan.teacher_evaluation_flops;
            }
            self.count_evaluation(flops);
        }
        Ok(perplexities)
    }

    /// The current perplexities, with their progress on the board. `None` if the student is told to stop.
    fn measure(&mut self, phase: &str) -> Result<Option<Vec<f64>>, PortError> {
        let worker = self.worker;
        let meter = worker.line.evaluation(phase);
        let measured = self.student.perplexities(&|done, total| {
            meter.at(done, total);
            worker.is_told_to_end()
        })?;
        if measured.is_some() {
            meter.finish();
        } else if self.context.peers.is_some() {
            // Perhaps only another rank was told to.
            worker.told.agree_to_stop();
        }
        Ok(measured)
    }

    fn count_evaluation(&mut self, flops: f64) {
        self.totals.evaluation_flops += flops;
        if self.needs_perplexities() {
            self.totals.mixture_flops += flops;
        }
    }

    /// Perplexities at the run's end, for its result and not for a mixture.
    pub(crate) fn evaluate_last(&mut self) -> Result<Option<Vec<f64>>, PortError> {
        let perplexities = self.measure("last evaluation of the student")?;
        self.totals.evaluation_flops += self.plan.evaluation_flops;
        if let Some(perplexities) = &perplexities {
            self.write_texts()?;
            self.measured(self.step(), perplexities);
        }
        Ok(perplexities)
    }

    /// Records what the student writes after the run's prompts. Other ranks than the first write nothing.
    fn write_texts(&mut self) -> Result<(), PortError> {
        if self.context.rank() > 0 {
            return Ok(());
        }
        let worker = self.worker;
        let texts = self.student.texts(&|| worker.is_told_to_end())?;
        // None if it was told to stop, which the caller hears as well.
        let Some(texts) = texts.filter(|texts| !texts.is_empty()) else {
            return Ok(());
        };
        let (step, model) = (self.step(), Writer::Student);
        let line = TextLine { step, model, texts };
        self.context.journal.texts(&line).map_err(unwritten)
    }

    /// Records what the first teacher's worker has left for the student.
    fn record_texts(&self, step: u64, model: Writer) -> Result<(), RunFileError> {
        let mut left = self.context.facts.texts.lock();
        let is_wanted = |line: &mut TextLine| line.step == step && line.model == model;
        for line in left.extract_if(.., is_wanted) {
            self.context.journal.texts(&line)?;
        }
        Ok(())
    }

    /// Perplexities for a user's request.
    pub(crate) fn evaluate_on_request(&mut self) -> Result<Option<Vec<f64>>, PortError> {
        let step = self.step();
        let phase = format!("requested evaluation of the student after step {step}");
        self.newly_busy();
        let perplexities = self.measure(&phase)?;
        self.totals.evaluation_seconds += self.newly_busy();
        self.totals.evaluation_flops += self.plan.evaluation_flops;
        Ok(perplexities)
    }

    /// Whether an earlier evaluation decides the next mixture, so that training does not wait for the one due now.
    pub(crate) fn is_ahead(&self) -> bool {
        self.ahead != Ahead::None
    }

    /// Whether the evaluation that this interval began with is pending.
    pub(crate) fn awaits_evaluation(&self) -> bool {
        self.ahead == Ahead::Awaited
    }

    /// Whether the state of the last step is complete, so that a checkpoint holds what decides the next mixture.
    pub(crate) fn is_whole(&self) -> bool {
        !self.is_ahead() || self.state.lagged_evaluation.is_some()
    }

    /// Stores what was measured after the last step, or that nothing was.
    pub(crate) fn remember(&mut self, perplexities: Option<&[f64]>) {
        if self.plan.lag > 0 {
            let (step, student) = (self.step(), perplexities.unwrap_or_default().to_vec());
            self.ahead = Ahead::Known(Evaluation { step, student });
        }
    }

    /// A copy of the weights, to evaluate elsewhere. Of several ranks, only rank 0 makes one.
    pub(crate) fn copy(&mut self) -> Result<Option<S::Weights>, PortError> {
        self.newly_busy();
        let is_first = self.context.rank() == 0;
        let weights = is_first.then(|| self.student.weights()).transpose()?;
        self.totals.evaluation_seconds += self.newly_busy();
        self.count_evaluation(self.plan.evaluation_flops);
        self.ahead = Ahead::Awaited;
        Ok(weights)
    }

    /// Records the result of a copy's evaluation.
    ///
    /// # Errors
    /// If what the copy wrote cannot be recorded.
    pub(crate) fn evaluated(&mut self, copy: EvaluatedCopy) -> Result<(), PortError> {
        self.totals.evaluation_seconds += copy.busy_seconds;
        took("evaluation", copy.busy_seconds);
        let evaluation = copy.evaluation;
        // If it needed a checkpoint, that was saved when the copy was made.
        self.measured(evaluation.step, &evaluation.student);
        self.record_texts(evaluation.step, Writer::Student)
            .map_err(unwritten)?;
        // Before the interval's first step, the state is still that of the previous interval.
        if self.step() > evaluation.step {
            self.state.lagged_evaluation = Some(evaluation.clone());
            // A run that resumes here knows the evaluation, so its texts belong to this state.
            self.state.lengths.texts = self.context.journal.lengths().texts;
        }
        self.ahead = Ahead::Known(evaluation);
        Ok(())
    }

    /// Accounts for a pause from `since` until now, and returns its seconds.
    pub(crate) fn paused(&mut self, since: Instant) -> f64 {
        let now = Instant::now();
        let seconds = now.duration_since(since).as_secs_f64();
        self.totals.paused_seconds += seconds;
        // A pause does not count as training time either.
        if let Some(first) = self.context.facts.first_sent.get() {
            self.paused += now.duration_since(since.max(*first));
        }
        if let Some(update) = &mut self.last_update {
            *update += now.duration_since(since);
        }
        seconds
    }

    /// The run's result; none if it ended before its first step.
    pub(crate) fn outcome(&self, end: End, after: Option<Vec<f64>>) -> Option<Outcome> {
        let state = &self.state;
        (state.step > 0).then(|| Outcome {
            end,
            step: state.step,
            intervals: state.interval.index + 1,
            baseline: state.baseline.clone(),
            after,
            measured: state.measured.clone(),
            totals: self.totals.clone(),
        })
    }
}

/// Shows how much of the last checkpoint is on the disk. `bytes`: its approximate size; 0 if unknown.
fn saving(bytes: u64) -> Meter {
    let before = checkpoint_bytes_written();
    Meter::reading("saving the last checkpoint", "MB", move || {
        let written = checkpoint_bytes_written() - before;
        let done = if bytes > 0 {
            written.min(bytes)
        } else {
            written
        };
        (done / 1_000_000, bytes / 1_000_000)
    })
}

/// Records how long a phase of a step took.
fn took(phase: &str, seconds: f64) {
    metrics::STEP_SECONDS.with(&[phase]).record(seconds);
}

fn unwritten(error: RunFileError) -> PortError {
    PortError::Other(format!("cannot write a record: {}", with_causes(&error)))
}
