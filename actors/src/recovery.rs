//! What to do when a worker fails: one table of remedies and one budget.
//!
//! | exit | worker | remedy |
//! |---|---|---|
//! | panic; unreadable data | loader | restart on the same queues; what it had in hand is done again |
//! | panic | teacher | the same |
//! | panic | student, batcher | rewind to the last checkpoint |
//! | training went wrong | student | rewind, and skip the steps at fault, at most `recovery.max_rollbacks` times |
//! | out of memory | any | rewind with a smaller size, chosen by what ran out of memory |
//! | anything else; the budget is spent | any | the student saves the last step, and the run ends |
//!
//! Of several ranks, each restarts its loaders and teachers by itself. Instead of a rewind or a last save, in which all
//! ranks would have to take part, it ends, and all ranks start again from the last checkpoint.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ddk_run::{Assignments, Override, Overrides, Source, records::EventKind, view::counted};
use ddk_settings::Settings;
use tokio::time::Instant;

use crate::{
    PortError, RunError, RunPlan, Work,
    worker::{Context, Exit, WorkerId},
};

/// Restarts and rewinds of a worker within `WINDOW`. One more ends the run.
const LIMIT: usize = 3;
const WINDOW: Duration = Duration::from_secs(600);
/// Delay before the first restart in a window; each further delay is four times as long. This gives transient faults
/// (a busy disk, a network folder that comes back) time to pass.
const BACKOFF: Duration = Duration::from_millis(50);

/// Recovery makes no chunk of positions smaller than this.
const SMALLEST_CHUNK: u64 = 64;

/// What to do about a worker that failed.
#[derive(Debug, Clone, PartialEq)]
pub enum Remedy {
    /// Restart it after this delay.
    Restart(Duration),
    /// End all workers, and start new ones from the last checkpoint.
    Rewind(Box<Rewind>),
    /// Save the last step and end the run.
    Abandon,
}

/// How a run rewinds to its last checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewind {
    /// The delay before it.
    pub after: Duration,
    /// The kind of its event.
    pub kind: EventKind,
    /// Its label in `ddk_rewinds_total`.
    pub reason: &'static str,
    /// Its event's message.
    pub message: String,
    /// What changes from then on, if anything.
    pub change: Option<Override>,
}

/// Decides the remedy for each failure.
#[derive(Debug)]
pub struct Recovery {
    overrides: Arc<Overrides>,
    failures: HashMap<WorkerId, Vec<Instant>>,
}

impl Recovery {
    /// The recovery of a run with these overrides.
    pub fn new(overrides: Arc<Overrides>) -> Self {
        Self {
            overrides,
            failures: HashMap::new(),
        }
    }

    /// The remedy for this exit. Counts the failure.
    pub fn remedy(&mut self, worker: &WorkerId, exit: &Exit, plan: &RunPlan) -> Remedy {
        let rewind = match (worker, exit) {
            (WorkerId::Loader(_), Exit::Panicked(_) | Exit::Failed(PortError::Data(_)))
            | (WorkerId::Teacher(_), Exit::Panicked(_)) => {
                let delay = self.within_budget(worker);
                return delay.map_or(Remedy::Abandon, Remedy::Restart);
            }
            // The student's weights may be half updated. The batcher's sequences in hand exist nowhere else.
            (WorkerId::Student | WorkerId::Batcher, Exit::Panicked(text)) => {
                self.within_budget(worker).map(|after| Rewind {
                    after,
                    kind: EventKind::Rewound,
                    reason: "panic",
                    message: format!("the {worker} panicked: {text}"),
                    change: None,
                })
            }
            (_, Exit::Failed(PortError::RollBack { steps, reason })) => {
                let is_allowed = self.overrides.rollbacks() < plan.recovery.max_rollbacks;
                let (first, last) = (steps.start(), steps.end());
                is_allowed.then(|| Rewind {
                    after: Duration::ZERO,
                    kind: EventKind::RolledBack,
                    reason: "numbers",
                    message: format!("steps {first} to {last} are skipped: {reason}"),
                    change: Some(Override {
                        step: *first,
                        source: Source::Recovery,
                        skip_steps: steps.clone().collect(),
                        reason: Some(reason.clone()),
                        ..Override::default()
                    }),
                })
            }
            // Each time a size is halved or an option turned on, so this ends.
            (_, Exit::Failed(PortError::OutOfMemory { during, message })) => {
                let smaller = |settings: &Settings| smaller(settings, plan.chunk, *during);
                plan.live.get(smaller).map(|(set, what)| Rewind {
                    after: Duration::ZERO,
                    kind: EventKind::Shrunk,
                    reason: "memory",
                    message: format!("{worker} ran out of memory ({message}): {what}"),
                    change: Some(Override {
                        source: Source::Recovery,
                        set,
                        reason: Some(message.clone()),
                        ..Override::default()
                    }),
                })
            }
            _ => None,
        };
        rewind.map_or(Remedy::Abandon, |rewind| Remedy::Rewind(Box::new(rewind)))
    }

    /// Records what the rewind changes, before the run resumes.
    ///
    /// # Errors
    /// If the change cannot be written.
    pub fn record(&self, rewind: &Rewind) -> Result<(), ddk_run::RunFileError> {
        let change = rewind.change.clone();
        change.map_or(Ok(()), |change| self.overrides.append(change))
    }

    /// What several ranks do instead of a rewind or a last save, in which a rank that failed could not take part: they
    /// end, and all start again. Returns the error to end with. What a rewind would change is recorded first, so that
    /// it holds then. The values are absolute, so it does no harm if several ranks record the same change.
    pub(crate) fn end_rank(
        &self,
        worker: WorkerId,
        exit: Exit,
        remedy: Remedy,
        context: &Context,
    ) -> RunError {
        if let Remedy::Rewind(rewind) = remedy {
            // All ranks find together that training went wrong, but each runs out of memory by itself.
            let records = rewind.kind != EventKind::RolledBack || context.rank() == 0;
            if records && let Err(error) = self.record(&rewind) {
                return RunError::lost(error);
            }
            context.note(rewind.kind, &rewind.message);
        }
        RunError::Rank {
            rank: context.rank(),
            worker,
            cause: exit,
        }
    }

    /// The delay after which the worker may restart; none if the budget is spent.
    fn within_budget(&mut self, worker: &WorkerId) -> Option<Duration> {
        let now = Instant::now();
        let times = self.failures.entry(worker.clone()).or_default();
        times.retain(|time| now.duration_since(*time) <= WINDOW);
        if times.len() >= LIMIT {
            return None;
        }
        let delay = BACKOFF * 4_u32.pow(times.len() as u32);
        times.push(now);
        Some(delay)
    }
}

/// The setting to change after this work ran out of memory, and a description of the change. `None` if nothing is left
/// to reduce.
fn smaller(settings: &Settings, chunk: i64, during: Work) -> Option<(Assignments, String)> {
    let micro_rows = settings.training.micro_batch_size;
    let teacher_rows = settings.teacher.batch_size.unwrap_or(micro_rows);
    let teacher_rows = teacher_rows.min(micro_rows);
    let evaluation_rows = settings.evaluation.batch_size as u64;
    let positions = chunk as u64 / 2;
    // A micro-batch has to divide the batch.
    let half = |rows: u64| if rows.is_multiple_of(2) { rows / 2 } else { 1 };
    let (key, size, what, noun) = match during {
        Work::Label if teacher_rows > 1 => (
            "teacher.batch_size",
            half(teacher_rows),
            "the teacher now takes {} at a time",
            "sequence",
        ),
        Work::Evaluate if evaluation_rows > 1 => (
            "evaluation.batch_size",
            half(evaluation_rows),
            "an evaluation now takes {} at a time",
            "document",
        ),
        Work::Train if micro_rows > 1 => (
            "training.micro_batch_size",
            half(micro_rows),
            "a micro-batch now has {}",
            "sequence",
        ),
        Work::Train if !settings.student.activation_checkpointing => {
            let key = "student.activation_checkpointing".to_owned();
            let what = "activation checkpointing is now on".to_owned();
            return Some(([(key, true.into())].into(), what));
        }
        Work::Train | Work::Evaluate if positions >= SMALLEST_CHUNK => (
            "objective.chunk_size",
            positions,
            "the LM head now takes {} at a time",
            "position",
        ),
        Work::Label | Work::Train | Work::Evaluate => return None,
    };
    let what = what.replace("{}", &counted(size, noun));
    Some(([(key.to_owned(), size.into())].into(), what))
}
