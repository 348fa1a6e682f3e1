//! The mixture actor: decides each interval's mixture and how many sequences it draws from each domain.
//!
//! [`Scheduler`] is a pure state machine, and [`MixtureActor`] gives it a mailbox. A mixture's line travels with its
//! interval. The student writes it before the first step drawn from that mixture, so the run's files depend only on
//! its steps, no matter how far ahead this actor is.

use std::sync::Arc;

use crossbeam::channel::Sender;
use ddk_corpus::Cursor;
use ddk_mixture::{Decision, Feedback, TrainingSums, limit};
use ddk_run::{
    RunFileError,
    records::{EventKind, MixtureLine, StopReason, seconds_since_1970},
};
use ddk_telemetry::metrics;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::{
    Interval, LoopState, RunPlan,
    interval::Evaluation,
    messages::StudentCommand,
    worker::{Context, Facts},
};

/// A message to the weight scheduler. The models' own workers measure perplexities: the teacher's once, and the
/// student's at an interval's end if the mixture or a setting asks for them.
#[derive(Debug)]
pub enum MixtureMessage {
    /// The teacher's perplexities are known.
    TeacherEvaluated,
    /// An interval has ended, and the next one is due. Receives a message once it is decided, if anyone waits for that.
    IntervalEnded(IntervalEnd, Option<Sender<()>>),
}

/// How an interval ended.
#[derive(Debug, Clone, PartialEq)]
pub struct IntervalEnd {
    /// Its last step; 0 before the first interval.
    pub step: u64,
    /// The student's perplexities after it, if measured. They always are before the first interval.
    pub student: Option<Vec<f64>>,
    /// Intervals to decide now: two if mixtures lag and nothing was measured earlier, otherwise one.
    pub intervals: u64,
    /// Sums over its updates.
    pub training: TrainingSums,
}

impl IntervalEnd {
    /// An interval's end when mixtures lag. It decides the next interval from this evaluation, which is empty if none
    /// was due.
    pub fn lagged(evaluation: &Evaluation, domains: usize) -> Self {
        let student = Some(evaluation.student.clone());
        Self {
            step: evaluation.step,
            student: student.filter(|student| !student.is_empty()),
            intervals: 1,
            training: TrainingSums::new(domains),
        }
    }
}

/// The state machine: turns the end of an interval into the next interval.
pub struct Scheduler {
    plan: Arc<RunPlan>,
    /// The interval set last, which the next one continues.
    last: Arc<Interval>,
}

/// The decision at the end of an interval.
#[derive(Debug)]
pub enum Verdict {
    /// Draw the next interval.
    Next(Arc<Interval>),
    /// Finish the run after the interval that was set last.
    Finish(StopReason),
    /// Set no interval: the run ends before another one would begin.
    Nothing,
}

impl Scheduler {
    /// Continues after the interval in `state`.
    pub fn new(plan: Arc<RunPlan>, state: &LoopState) -> Self {
        let last = Arc::new(state.interval.clone());
        Self { plan, last }
    }

    /// Decides what to do after an interval has ended. `teacher` holds the teacher's perplexities.
    pub fn ended(&mut self, ended: &IntervalEnd, teacher: &[f64]) -> Verdict {
        let last = Arc::clone(&self.last);
        let measured = ended.student.clone().map(|student| Evaluation {
            step: ended.step,
            student,
        });
        let is_measured = measured.is_some();
        let evaluated = measured.unwrap_or_else(|| last.evaluated.clone());
        let perplexities = evaluated.beside(teacher);
        let gaps = perplexities.gaps();
        let caught_up = |target: f64| gaps.iter().all(|gap| *gap <= target);
        if is_measured && ended.step > 0 && self.plan.target_gap.is_some_and(caught_up) {
            return Verdict::Finish(StopReason::TargetGap);
        }
        let mut patience = last.patience;
        if is_measured && ended.step > 0 {
            patience = patience.after(&gaps, self.plan.min_improvement);
        }
        if self
            .plan
            .patience
            .is_some_and(|most| patience.since >= most)
        {
            return Verdict::Finish(StopReason::Patience);
        }
        let mut policy = last.policy.clone();
        let first_step = last.last_step() + 1;
        let feedback = Feedback {
            perplexities: is_measured.then_some(&perplexities),
            training: &ended.training,
            decay_left: self.plan.decay_left.at(first_step),
        };
        let decision = match last.next_index() {
            0 => policy.first(&self.plan.natural, &perplexities),
            _ => policy.next(&last.weights, &feedback),
        };
        let (decision, refused) = match decision {
            Ok(decision) => (decision, None),
            Err(refused) => (
                Decision::of(last.weights.clone()),
                Some(refused.to_string()),
            ),
        };
        let until = |last: u64| (last + 1).saturating_sub(first_step);
        let end = self.plan.interval_end.map(until).filter(|left| *left > 0);
        let limits = [self.plan.max_steps.map(until), end].into_iter().flatten();
        let steps = limits.fold(policy.update_every(), u64::min);
        if steps == 0 {
            return Verdict::Nothing;
        }
        // If epochs are limited, the last interval takes only as many steps as the remaining sequences fill.
        let cursors = last.cursors_after(&last.counts, &self.plan.domain_sequences);
        let left = self.rows_left(&cursors);
        let rows_left: Option<u64> = left.iter().copied().sum();
        let steps_left = rows_left.map(|rows| rows / self.plan.sequences_per_step);
        let steps = steps_left.map_or(steps, |left| steps.min(left));
        if steps == 0 {
            return Verdict::Finish(StopReason::MaxEpochs);
        }
        let rows = steps * self.plan.sequences_per_step;
        let target = limit(&decision.weights, &left, rows);
        let mut quota = last.quota.clone();
        let mut interval = Interval {
            index: last.next_index(),
            first_step,
            steps,
            weights: decision.weights.clone(),
            counts: quota.draw(&target, rows),
            target,
            policy,
            quota,
            cursors,
            evaluated,
            patience,
            line: None,
        };
        interval.line = Some(Arc::new(self.line(&interval, teacher, decision, refused)));
        self.last = Arc::new(interval);
        Verdict::Next(Arc::clone(&self.last))
    }

    /// The line of an interval: its mixture, what the decision was based on, and the last measured perplexities.
    pub fn line(
        &self,
        interval: &Interval,
        teacher: &[f64],
        decision: Decision,
        refused: Option<String>,
    ) -> MixtureLine {
        let plan = &self.plan;
        let by_name = |values: Option<Vec<f64>>| values.map(|values| plan.by_name(&values));
        let perplexities = interval.evaluated.beside(teacher);
        MixtureLine {
            interval: interval.index,
            step: interval.first_step - 1,
            policy: interval.policy.name().to_string(),
            alpha: interval.policy.alpha(),
            weights: plan.by_name(&interval.weights),
            target: plan.by_name(&interval.target),
            previous_weights: by_name(decision.previous),
            student_perplexity: plan.finite_by_name(&perplexities.student),
            teacher_perplexity: plan.finite_by_name(&perplexities.teacher),
            ratio: plan.finite_by_name(&perplexities.ratios()),
            gap: plan.finite_by_name(&perplexities.gaps()),
            evaluated_at_step: interval.evaluated.step,
            discrepancy: by_name(decision.discrepancy),
            losses: decision.losses.map(|losses| plan.known_by_name(losses)),
            reference: by_name(decision.reference),
            excess: by_name(decision.excess),
            mean_weights: by_name(decision.mean_weights),
            refused,
        }
    }

    /// Sequences that each domain has left, if epochs are limited.
    fn rows_left(&self, cursors: &[Cursor]) -> Vec<Option<u64>> {
        cursors
            .iter()
            .zip(&self.plan.domain_sequences)
            .map(|(cursor, &rows)| {
                let all = (self.plan.max_passes? * rows as f64) as u64;
                Some(all.saturating_sub(cursor.epoch * rows + cursor.index))
            })
            .collect()
    }
}

/// The weight scheduler's actor.
pub struct MixtureActor;

/// What the weight scheduler works with.
pub struct MixtureState {
    /// The state machine.
    pub scheduler: Scheduler,
    /// Intervals for the batcher. There is room for two, because interval n is set only after interval n - 2 is
    /// trained on.
    pub intervals: Sender<Arc<Interval>>,
    /// Tells the student when the run is finished.
    pub student: Sender<StudentCommand>,
    /// Whether the student has been told that the run is finished.
    pub finished: bool,
    /// An interval's end that waits for the teacher's perplexities.
    pub waiting: Option<IntervalEnd>,
    /// Holds the teacher's perplexities.
    pub facts: Arc<Facts>,
}

impl MixtureState {
    /// Decides what follows the interval's end in `waiting`, once the teacher's perplexities are known.
    fn decide(&mut self) -> Result<(), ActorProcessingErr> {
        let Some(teacher) = self.facts.teacher_perplexities.get() else {
            return Ok(());
        };
        let Some(ended) = self.waiting.take() else {
            return Ok(());
        };
        for _ in 0..ended.intervals {
            // The end of the run may already be decided when an evaluation arrives.
            if self.finished {
                break;
            }
            match self.scheduler.ended(&ended, teacher) {
                Verdict::Next(interval) => {
                    let sent = self.intervals.try_send(interval);
                    sent.map_err(|_| "the batcher does not accept the next interval")?;
                }
                Verdict::Finish(reason) => {
                    self.finished = true;
                    let after = self.scheduler.last.last_step();
                    // The send fails only if the student has already ended.
                    let _ = self.student.send(StudentCommand::Finish(reason, after));
                }
                Verdict::Nothing => {}
            }
        }
        Ok(())
    }
}

/// Announces the mixture that the next step is drawn from: its line, its gauges, and an event if an update was
/// refused.
pub(crate) fn announce(line: &MixtureLine, context: &Context) -> Result<(), RunFileError> {
    if let Some(reason) = &line.refused {
        metrics::REFUSED_UPDATES.with(&[]).increment(1);
        tracing::warn!(
            step = line.step,
            reason,
            "the mixture is unchanged: an update was refused"
        );
        let message = format!(
            "the mixture of interval {} is unchanged: {reason}",
            line.interval
        );
        context.event(line.step, EventKind::Refused, &message)?;
    }
    publish(line);
    metrics::MIXTURE_TIME.with(&[]).set(seconds_since_1970());
    context.journal.mixture(line)?;
    context.observer.on_mixture(line);
    Ok(())
}

/// Sets the gauges of a mixture.
pub fn publish(line: &MixtureLine) {
    let interval = line.interval as f64;
    metrics::MIXTURE_INTERVAL.with(&[]).set(interval);
    // If alpha is 0 or there is one domain, weights never move and have no limits. Policies without alpha have none
    // either.
    let moves = line.weights.len() > 1;
    if let Some(alpha) = line.alpha.filter(|alpha| moves && *alpha > 0.0) {
        let floor = (1.0 - alpha) / line.weights.len() as f64;
        for (limit, weight) in [("floor", floor), ("cap", alpha + floor)] {
            metrics::WEIGHT_LIMIT.with(&[limit]).set(weight);
        }
    }
    let (student, teacher) = (&line.student_perplexity, &line.teacher_perplexity);
    for (gauge, labels, values) in [
        (&metrics::WEIGHT, &[][..], &line.weights),
        (&metrics::TARGET, &[], &line.target),
        (&metrics::GAP, &[], &line.gap),
        (&metrics::PERPLEXITY, &["student"], student),
        (&metrics::PERPLEXITY, &["teacher"], teacher),
    ] {
        for (domain, value) in values {
            gauge.with(&[labels, &[domain]].concat()).set(*value);
        }
    }
}

impl Actor for MixtureActor {
    type Msg = MixtureMessage;
    type State = MixtureState;
    type Arguments = MixtureState;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        mut state: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        state.decide()?;
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MixtureMessage::TeacherEvaluated => {
                state.decide()?;
                // The send fails only if the student has already ended.
                let _ = state.student.send(StudentCommand::TeacherEvaluated);
            }
            MixtureMessage::IntervalEnded(ended, decided) => {
                state.waiting = Some(ended);
                state.decide()?;
                // The receiver is gone only if the student has already ended.
                let _ = decided.map(|decided| decided.send(()));
            }
        }
        Ok(())
    }
}
