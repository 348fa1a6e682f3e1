//! The weight scheduler: decides each interval's mixture and how many rows it draws from each domain.
//!
//! A pure state machine ([`Scheduler`]) behind a mailbox. It writes the mixture's line before anybody can draw by it.

use std::sync::Arc;

use crossbeam::channel::Sender;
use ddk_corpus::Cursor;
use ddk_mixture::{Decision, Perplexities, Policy, Quota, limit};
use ddk_run::{Journal, records::MixtureLine};
use ddk_telemetry::{metrics, seconds_since_1970};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::{
    Interval, LoopState, Observer, RunPlan, StopReason, batcher::SetInterval,
    student::StudentControl,
};

/// What the weight scheduler is told.
#[derive(Debug)]
pub enum WeightSchedulerMessage {
    /// Both models' perplexities after `step` steps: the next interval is due.
    Evaluated {
        /// The last step of the interval that has ended; 0 before the first.
        step: u64,
        /// On each domain.
        perplexities: Perplexities,
    },
}

/// The state machine: from perplexities to intervals.
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
}

/// What follows from an evaluation.
#[derive(Debug)]
pub enum Verdict {
    /// Draw the next interval; with its line.
    Next(Box<MixtureLine>, Interval),
    /// The run is done.
    Finish(StopReason),
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
                plan,
            },
            Some(LoopState { interval, .. }) => Self {
                policy,
                quota: interval.quota.clone(),
                cursors: interval.cursors_at_end(&plan.domain_rows),
                next_index: interval.index + 1,
                next_first_step: interval.last_step() + 1,
                weights: interval.weights.clone(),
                plan,
            },
        }
    }

    /// Decides what follows from the perplexities after `step` steps.
    pub fn evaluated(&mut self, step: u64, perplexities: &Perplexities) -> Verdict {
        let ratios = perplexities.ratios();
        let caught_up = |limit: f64| ratios.iter().all(|ratio| *ratio <= limit);
        if self.next_index > 0 && self.plan.stop_ratio.is_some_and(caught_up) {
            return Verdict::Finish(StopReason::StopRatio);
        }
        let (decision, refused) = self.decide(perplexities, ratios);
        let steps = self.policy.update_every();
        let steps = match self.plan.max_steps {
            Some(last) => steps.min((last + 1).saturating_sub(self.next_first_step)),
            None => steps,
        };
        let rows = steps * self.plan.rows_per_step;
        let left = self.rows_left();
        if left.iter().all(Option::is_some) && left.iter().flatten().sum::<u64>() < rows {
            return Verdict::Finish(StopReason::MaxPasses);
        }
        let target = limit(&decision.weights, &left, rows);
        let cursors = self.cursors.clone();
        let counts = self.quota.draw(&target, rows);
        let interval = Interval {
            index: self.next_index,
            first_step: self.next_first_step,
            steps,
            weights: decision.weights.clone(),
            target: target.clone(),
            counts,
            policy: self.policy.state(),
            quota: self.quota.clone(),
            cursors,
        };
        let plan = &self.plan;
        let line = MixtureLine {
            interval: interval.index,
            step: interval.first_step - 1,
            version: interval.index,
            policy: self.policy.name().to_owned(),
            alpha: self.policy.alpha(),
            weights: plan.by_name(&decision.weights),
            target: plan.by_name(&target),
            previous_weights: decision.previous.map(|previous| plan.by_name(&previous)),
            student_perplexity: plan.finite_by_name(&perplexities.student),
            teacher_perplexity: plan.finite_by_name(&perplexities.teacher),
            ratio: plan.finite_by_name(&decision.ratio),
            evaluated_at_step: step,
            discrepancy: decision.discrepancy.map(|factor| plan.by_name(&factor)),
            refused,
        };
        self.cursors = interval.cursors_at_end(&self.plan.domain_rows);
        self.weights = decision.weights;
        self.next_index += 1;
        self.next_first_step += steps;
        Verdict::Next(Box::new(line), interval)
    }

    fn decide(
        &mut self,
        perplexities: &Perplexities,
        ratio: Vec<f64>,
    ) -> (Decision, Option<String>) {
        let decision = match self.next_index {
            0 => self.policy.first(&self.plan.natural, perplexities),
            _ => self.policy.next(perplexities),
        };
        match decision {
            Ok(decision) => (decision, None),
            Err(refused) => {
                let kept = Decision {
                    weights: self.weights.clone(),
                    previous: None,
                    ratio,
                    discrepancy: None,
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

/// The actor.
pub struct WeightScheduler;

/// What it works with.
pub struct WeightSchedulerState {
    /// The state machine.
    pub scheduler: Scheduler,
    /// To the batcher. It has room: an interval is only set when the one before has been drawn.
    pub intervals: Sender<SetInterval>,
    /// To the student, where the run is done.
    pub student: Sender<StudentControl>,
    /// Where the line goes.
    pub journal: Arc<Journal>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
}

impl WeightSchedulerState {
    fn set(&self, line: &MixtureLine, interval: Interval) -> Result<(), ActorProcessingErr> {
        if let Some(reason) = &line.refused {
            metrics::REFUSED_UPDATES.with(&[]).increment(1);
            tracing::warn!(
                step = line.step,
                reason,
                "the mixture stays: an update was refused"
            );
            let message = format!("the mixture of interval {} stays: {reason}", line.interval);
            let event = self.journal.event(line.step, "refused", &message)?;
            self.observer.on_event(&event);
        }
        publish(line);
        self.journal.mixture(line)?;
        self.observer.on_mixture(line);
        let interval = Arc::new(interval);
        self.intervals
            .try_send(SetInterval {
                interval,
                steps_done: 0,
            })
            .map_err(|_| "the batcher does not take the next interval")?;
        Ok(())
    }
}

/// Sets the gauges of a mixture.
pub fn publish(line: &MixtureLine) {
    metrics::MIXTURE_VERSION.with(&[]).set(line.version as f64);
    metrics::MIXTURE_TIME.with(&[]).set(seconds_since_1970());
    // Where alpha is 0, weights never move: they are at no limit.
    if line.alpha > 0.0 {
        let floor = (1.0 - line.alpha) / line.weights.len() as f64;
        for (limit, weight) in [("floor", floor), ("cap", line.alpha + floor)] {
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
        let WeightSchedulerMessage::Evaluated { step, perplexities } = message;
        match state.scheduler.evaluated(step, &perplexities) {
            Verdict::Next(line, interval) => state.set(&line, interval),
            Verdict::Finish(reason) => {
                Ok(state
                    .student
                    .try_send(StudentControl::Finish(reason))
                    .map_err(|_| "the student does not take the run's end")?)
            }
        }
    }
}
