//! The weight scheduler: decides each interval's mixture and how many rows it draws from each domain.
//!
//! A pure state machine ([`Scheduler`]) behind a mailbox. A mixture's line travels with its interval: the
//! student writes it before the first step that was drawn by it, so that the run's files follow from the
//! steps alone, however far ahead this is.

use std::sync::Arc;

use crossbeam::channel::Sender;
use ddk_corpus::Cursor;
use ddk_mixture::{Decision, Feedback, Perplexities, Policy, Quota, TrainingSums, limit};
use ddk_run::{
    RunFileError,
    records::{ByDomain, EventKind, MixtureLine, StopReason, seconds_since_1970},
};
use ddk_telemetry::metrics;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::{
    Interval, LoopState, RunPlan, batcher::SetInterval, interval::Evaluated,
    messages::StudentControl, worker::Context,
};

/// What the weight scheduler is told. The models' own lanes measure perplexities: the teacher's once, the student's
/// at an interval's end, where the mixture or a setting asks for them.
#[derive(Debug)]
pub enum WeightSchedulerMessage {
    /// The teacher's perplexities, once per run.
    TeacherEvaluated(Vec<f64>),
    /// The next interval is due.
    IntervalEnded(IntervalEnd),
}

/// How an interval ended.
#[derive(Debug, Clone, PartialEq)]
pub struct IntervalEnd {
    /// Its last step; 0 before the first interval.
    pub step: u64,
    /// The student's perplexities after it, where they were measured. They always are before the first interval.
    pub student: Option<Vec<f64>>,
    /// Intervals that follow from this: two where mixtures lag and nothing earlier has been measured, otherwise one.
    pub intervals: u64,
    /// What its updates were made from.
    pub training: TrainingSums,
}

/// The state machine: from the ends of intervals to intervals.
pub struct Scheduler {
    plan: Arc<RunPlan>,
    policy: Box<dyn Policy>,
    quota: Quota,
    /// Where the domains stand when the next interval begins.
    cursors: Vec<Cursor>,
    next_index: u64,
    next_first_step: u64,
    /// The mixture in use, kept where an update is refused.
    weights: Vec<f64>,
    /// The last evaluation: the step after which it was made, and what it gave.
    evaluated: (u64, Perplexities),
}

/// What follows from an interval's end.
#[derive(Debug)]
pub enum Verdict {
    /// Draw the next interval.
    Next(Box<Interval>),
    /// The run is done when the interval before has been trained on.
    Finish(StopReason),
    /// The run ends before another interval would begin.
    Nothing,
}

impl Scheduler {
    /// Before the first interval, or going on after `resume`.
    pub fn new(plan: Arc<RunPlan>, policy: Box<dyn Policy>, resume: Option<&LoopState>) -> Self {
        let domains = plan.domains.len();
        match resume {
            None => Self {
                policy,
                quota: Quota::new(domains),
                cursors: vec![Cursor::default(); domains],
                next_index: 0,
                next_first_step: 1,
                weights: plan.natural.clone(),
                evaluated: (
                    0,
                    Perplexities {
                        student: Vec::new(),
                        teacher: Vec::new(),
                    },
                ),
                plan,
            },
            Some(LoopState {
                interval, at_start, ..
            }) => Self {
                policy,
                quota: interval.quota.clone(),
                cursors: interval.cursors_at_end(&plan.domain_rows),
                next_index: interval.index + 1,
                next_first_step: interval.last_step() + 1,
                weights: interval.weights.clone(),
                evaluated: (
                    interval.evaluated.step,
                    interval.evaluated.perplexities(&at_start.teacher),
                ),
                plan,
            },
        }
    }

    /// Decides what follows from how an interval ended.
    pub fn ended(&mut self, ended: &IntervalEnd, measured: Option<&Perplexities>) -> Verdict {
        if let Some(perplexities) = measured {
            let ratios = perplexities.ratios();
            let caught_up = |limit: f64| ratios.iter().all(|ratio| *ratio <= limit);
            if ended.step > 0 && self.plan.stop_ratio.is_some_and(caught_up) {
                return Verdict::Finish(StopReason::StopRatio);
            }
            self.evaluated = (ended.step, perplexities.clone());
        }
        let (decision, refused) = self.decide(&ended.training, measured);
        let steps = self.policy.update_every();
        let until = |last: u64| (last + 1).saturating_sub(self.next_first_step);
        let steps = self
            .plan
            .max_steps
            .map_or(steps, |last| steps.min(until(last)));
        let end = self.plan.interval_end.map(until).filter(|left| *left > 0);
        let steps = end.map_or(steps, |left| steps.min(left));
        if steps == 0 {
            return Verdict::Nothing;
        }
        // Where passes are limited, the last interval is as long as what is left.
        let left = self.rows_left();
        let whole: Option<Vec<u64>> = left.iter().copied().collect();
        let steps_left = whole.map(|rows| rows.iter().sum::<u64>() / self.plan.rows_per_step);
        let steps = steps_left.map_or(steps, |left| steps.min(left));
        if steps == 0 {
            return Verdict::Finish(StopReason::MaxPasses);
        }
        let rows = steps * self.plan.rows_per_step;
        let target = limit(&decision.weights, &left, rows);
        let cursors = self.cursors.clone();
        let counts = self.quota.draw(&target, rows);
        let mut interval = Interval {
            index: self.next_index,
            first_step: self.next_first_step,
            steps,
            weights: decision.weights.clone(),
            target: target.clone(),
            counts,
            policy: self.policy.state(),
            quota: self.quota.clone(),
            cursors,
            evaluated: Evaluated::new(self.evaluated.0, &self.evaluated.1.student),
            line: None,
        };
        let plan = &self.plan;
        let by_name = |values: Option<Vec<f64>>| values.map(|values| plan.by_name(&values));
        let line = MixtureLine {
            previous_weights: by_name(decision.previous),
            discrepancy: by_name(decision.discrepancy),
            losses: decision.losses.map(|losses| known(plan, &losses)),
            reference: by_name(decision.reference),
            excess: by_name(decision.excess),
            mean_weights: by_name(decision.mean_weights),
            refused,
            ..self.line(&interval)
        };
        self.cursors = interval.cursors_at_end(&self.plan.domain_rows);
        self.weights = decision.weights;
        self.next_index += 1;
        self.next_first_step += steps;
        interval.line = Some(Arc::new(line));
        Verdict::Next(Box::new(interval))
    }

    /// What is known of an interval that is drawn by: its mixture, and the perplexities measured last.
    pub fn line(&self, interval: &Interval) -> MixtureLine {
        let plan = &self.plan;
        let (evaluated_at_step, perplexities) = &self.evaluated;
        MixtureLine {
            interval: interval.index,
            step: interval.first_step - 1,
            version: interval.index,
            policy: self.policy.name().to_string(),
            alpha: self.policy.alpha(),
            weights: plan.by_name(&interval.weights),
            target: plan.by_name(&interval.target),
            previous_weights: None,
            student_perplexity: plan.finite_by_name(&perplexities.student),
            teacher_perplexity: plan.finite_by_name(&perplexities.teacher),
            ratio: plan.finite_by_name(&perplexities.ratios()),
            evaluated_at_step: *evaluated_at_step,
            discrepancy: None,
            losses: None,
            reference: None,
            excess: None,
            mean_weights: None,
            refused: None,
        }
    }

    fn decide(
        &mut self,
        training: &TrainingSums,
        perplexities: Option<&Perplexities>,
    ) -> (Decision, Option<String>) {
        let decision = match self.next_index {
            0 => self.policy.first(&self.plan.natural, &self.evaluated.1),
            _ => {
                let feedback = Feedback {
                    perplexities,
                    training,
                };
                self.policy.next(&self.weights, &feedback)
            }
        };
        match decision {
            Ok(decision) => (decision, None),
            Err(refused) => {
                let kept = Decision {
                    weights: self.weights.clone(),
                    ..Decision::default()
                };
                (kept, Some(refused.to_string()))
            }
        }
    }

    /// Rows that each domain may still give, where passes are limited.
    fn rows_left(&self) -> Vec<Option<u64>> {
        self.cursors
            .iter()
            .zip(&self.plan.domain_rows)
            .map(|(cursor, &rows)| {
                let all = (self.plan.max_passes? * rows as f64) as u64;
                Some(all.saturating_sub(cursor.pass * rows + cursor.index))
            })
            .collect()
    }
}

/// Those that there are, by name.
fn known(plan: &RunPlan, values: &[Option<f64>]) -> ByDomain {
    let named = plan.domains.iter().zip(values);
    named
        .filter_map(|(name, value)| Some((name.clone(), (*value)?)))
        .collect()
}

/// The actor.
pub struct WeightScheduler;

/// What it works with.
pub struct WeightSchedulerState {
    /// The state machine.
    pub scheduler: Scheduler,
    /// To the batcher. It has room for two: no interval is decided before the one but last has been trained on.
    pub intervals: Sender<SetInterval>,
    /// To the student, where the run is done.
    pub student: Sender<StudentControl>,
    /// Whether the run's end has been said.
    pub finished: bool,
    /// The teacher's perplexities, once known.
    pub teacher: Option<Vec<f64>>,
    /// An interval's end that waits for them.
    pub waiting: Option<IntervalEnd>,
}

impl WeightSchedulerState {
    fn take(&mut self, message: WeightSchedulerMessage) -> Result<(), ActorProcessingErr> {
        match message {
            WeightSchedulerMessage::TeacherEvaluated(teacher) => self.teacher = Some(teacher),
            WeightSchedulerMessage::IntervalEnded(ended) => self.waiting = Some(ended),
        }
        let Some(teacher) = self.teacher.clone() else {
            return Ok(());
        };
        let Some(mut ended) = self.waiting.take() else {
            return Ok(());
        };
        let student = ended.student.take();
        let measured = student.map(|student| Perplexities { student, teacher });
        for _ in 0..ended.intervals {
            // An evaluation may still come in when the run's end is known.
            if self.finished {
                break;
            }
            match self.scheduler.ended(&ended, measured.as_ref()) {
                Verdict::Next(interval) => {
                    let set = SetInterval {
                        interval: Arc::new(*interval),
                        steps_done: 0,
                    };
                    let sent = self.intervals.try_send(set);
                    sent.map_err(|_| "the batcher does not take the next interval")?;
                }
                Verdict::Finish(reason) => {
                    self.finished = true;
                    let sent = self.student.try_send(StudentControl::Finish(
                        reason,
                        self.scheduler.next_first_step - 1,
                    ));
                    sent.map_err(|_| "the student does not take the run's end")?;
                }
                Verdict::Nothing => {}
            }
        }
        Ok(())
    }
}

/// Tells of a mixture that the next step is drawn by: its line, its gauges, and an event where an update was refused.
pub(crate) fn announce(line: &MixtureLine, context: &Context) -> Result<(), RunFileError> {
    if let Some(reason) = &line.refused {
        metrics::REFUSED_UPDATES.with(&[]).increment(1);
        tracing::warn!(
            step = line.step,
            reason,
            "the mixture stays: an update was refused"
        );
        let message = format!("the mixture of interval {} stays: {reason}", line.interval);
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
    metrics::MIXTURE_VERSION.with(&[]).set(line.version as f64);
    // Where alpha is 0, or there is one domain, weights never move: they are at no limit. Other policies have none.
    let moves = line.weights.len() > 1;
    if let Some(alpha) = line.alpha.filter(|alpha| moves && *alpha > 0.0) {
        let floor = (1.0 - alpha) / line.weights.len() as f64;
        for (limit, weight) in [("floor", floor), ("cap", alpha + floor)] {
            metrics::WEIGHT_LIMIT.with(&[limit]).set(weight);
        }
    }
    let sets = [
        (&metrics::WEIGHT, &line.weights),
        (&metrics::TARGET, &line.target),
        (&metrics::RATIO, &line.ratio),
    ];
    for (gauge, values) in sets {
        for (domain, value) in values {
            gauge.with(&[domain]).set(*value);
        }
    }
    for (model, values) in [
        ("student", &line.student_perplexity),
        ("teacher", &line.teacher_perplexity),
    ] {
        for (domain, value) in values {
            metrics::PERPLEXITY.with(&[model, domain]).set(*value);
        }
    }
}

impl Actor for WeightScheduler {
    type Msg = WeightSchedulerMessage;
    type State = WeightSchedulerState;
    type Arguments = WeightSchedulerState;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        state: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        state.take(message)
    }
}
