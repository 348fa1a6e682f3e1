//! The pipeline: its queues, and what is needed to build a part of it again. The one place that wires actors together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use crossbeam::channel::{Receiver, Sender, bounded, never};
use ddk_corpus::Cursor;
use ddk_mixture::{Policy, TrainingSums};
use ddk_run::{Journal, records::EventKind};
use ddk_telemetry::{Board, Queues, ShownQueue, metrics};
use ractor::{Actor, ActorCell, ActorId};

use super::spawn;
use crate::{
    LoopState, Observer, Outcome, Parts, RunError, RunPlan, Student, Teacher,
    batcher::{Batcher, SetInterval},
    checkpointer::Checkpointer,
    domain_loader::DomainLoader,
    messages::StudentControl,
    student::StudentLane,
    teacher::{BusySum, Evaluations, TeacherLane},
    weight_scheduler::{
        IntervalEnd, Scheduler, WeightScheduler, WeightSchedulerMessage, WeightSchedulerState,
        publish,
    },
    worker::{Exit, Never, WorkerId},
};

/// Rows that a loader reads ahead. A row is a few kilobytes; the heavy queues are those of micro-batches.
const ROWS_AHEAD: usize = 64;

pub(super) struct Pipeline<T: Teacher> {
    pub(super) control: Sender<StudentControl>,
    pub(super) board: Arc<Board>,
    loaders: Vec<DomainLoader>,
    teachers: Vec<TeacherLane<T>>,
    outcome: Arc<Mutex<Option<Outcome>>>,
    journal: Arc<Journal>,
    observer: Arc<dyn Observer>,
    /// The queues' lines on the board.
    _queues: Vec<ShownQueue>,
}

pub(super) struct Started<T: Teacher> {
    pub(super) pipeline: Pipeline<T>,
    pub(super) alive: HashMap<ActorId, (WorkerId, ActorCell)>,
    pub(super) stop: Sender<Never>,
}

/// Builds the queues and starts every part, each when the ones that it talks to are ready: deciders,
/// checkpointer, teachers, student, batcher, loaders. Where one cannot be started, dropping the stop channel
/// ends those that were.
pub(super) async fn start<T, S>(
    plan: RunPlan,
    parts: Parts<T, S>,
    policy: Box<dyn Policy>,
    resume: Option<LoopState>,
    teacher_perplexities: Option<Vec<f64>>,
    above: ActorCell,
) -> Result<Started<T>, RunError>
where
    T: Teacher + 'static,
    S: Student<Signal = T::Signal, Weights = T::Weights> + 'static,
{
    let plan = Arc::new(plan);
    let Parts {
        teacher,
        student,
        rows,
        batcher: batcher_hook,
        checkpoints,
        journal,
        board,
        observer,
    } = parts;
    let (stop_sender, stop) = bounded::<Never>(0);
    // Three words at most: a stop, a failure, the run's end.
    let (control, control_receiver) = bounded(4);
    let (intervals, intervals_receiver) = bounded(2);
    let (copies, copies_receiver) = bounded(1);
    let (evaluated, evaluated_receiver) = bounded(1);
    let evaluations = Evaluations {
        asked: copies_receiver,
        in_hand: Arc::default(),
        done: evaluated,
    };
    // No snapshot waits in the channel: it would be one more copy of the student in memory.
    let (saves, saves_receiver) = bounded(0);
    let micro = queues(plan.teacher_lanes, plan.queue_depth);
    let labelled = queues(plan.teacher_lanes, plan.queue_depth);
    let row_queues = queues(plan.domains.len(), ROWS_AHEAD);
    let on_board = (0..plan.teacher_lanes)
        .flat_map(|lane| {
            let (rows, signals) = (micro[lane].1.clone(), labelled[lane].1.clone());
            let depth = plan.queue_depth;
            [
                board.queue(format!("batcher to teacher-{lane}"), depth, move || {
                    rows.len()
                }),
                board.queue(format!("teacher-{lane} to student"), depth, move || {
                    signals.len()
                }),
            ]
        })
        .collect();
    let known = Arc::new(OnceLock::new());
    if let Some(perplexities) = teacher_perplexities.clone() {
        let _ = known.set(perplexities);
    }
    let first_sent = Arc::new(OnceLock::new());
    let busy = Arc::new(BusySum::default());
    let outcome = Arc::new(Mutex::new(None));
    if let Some(last) = plan.max_steps {
        metrics::STEP_LIMIT.with(&[]).set(last as f64);
    }
    let saved = resume.as_ref().map_or(0, |state| state.step);
    metrics::CHECKPOINT_STEP.with(&[]).set(saved as f64);
    let queues_meter = Queues::empty();

    let needs = policy.needs();
    let scheduler = Scheduler::new(Arc::clone(&plan), policy, resume.as_ref());
    // What a run that goes on is drawn by is seen at once, not with the next mixture.
    if let Some(state) = &resume {
        publish(&scheduler.line(&state.interval));
        let cursors = state.interval.cursors.iter().zip(&plan.domain_rows);
        for (domain, (cursor, rows)) in plan.domains.iter().zip(cursors) {
            metrics::PASSES.with(&[domain]).set(cursor.passes(*rows));
        }
    }
    let scheduler = WeightSchedulerState {
        scheduler,
        intervals: intervals.clone(),
        student: control.clone(),
        finished: false,
        teacher: teacher_perplexities,
        waiting: None,
    };
    let (scheduler, _) = Actor::spawn_linked(None, WeightScheduler, scheduler, above.clone())
        .await
        .map_err(|error| RunError::Lost(error.to_string()))?;
    // Within an interval the run goes on with it; at its end the student evaluates first. Where mixtures lag,
    // the one after it follows from what is known.
    if let Some(state) = resume.as_ref().filter(|state| !state.at_interval_end()) {
        let set = SetInterval {
            interval: Arc::new(state.interval.clone()),
            steps_done: state.step + 1 - state.interval.first_step,
        };
        let sent = intervals.try_send(set);
        sent.map_err(|error| RunError::Lost(error.to_string()))?;
    }
    if let Some(ended) = resume.as_ref().and_then(|state| known_ahead(&plan, state)) {
        scheduler
            .cast(WeightSchedulerMessage::IntervalEnded(Box::new(ended)))
            .map_err(|error| RunError::Lost(error.to_string()))?;
    }
    let cell = scheduler.get_cell();
    let mut alive = HashMap::from([(cell.get_id(), (WorkerId::WeightScheduler, cell))]);

    let cursors = start_cursors(&plan, resume.as_ref());
    let loaders: Vec<DomainLoader> = plan
        .domains
        .iter()
        .enumerate()
        .map(|(domain, name)| DomainLoader {
            domain: domain as u16,
            domain_rows: plan.domain_rows[domain],
            rows: Arc::clone(&rows),
            slot: Arc::new(Mutex::new(cursors[domain])),
            out: row_queues[domain].0.clone(),
            stop: stop.clone(),
            queues: queues_meter.clone(),
            status: board.worker(&format!("loader-{name}")),
        })
        .collect();
    let teachers: Vec<TeacherLane<T>> = (0..plan.teacher_lanes)
        .map(|lane| TeacherLane {
            lane,
            factory: Arc::clone(&teacher),
            input: micro[lane].1.clone(),
            out: labelled[lane].0.clone(),
            in_flight: Arc::new(Mutex::new(None)),
            perplexities: Arc::clone(&known),
            evaluations: match lane {
                0 => evaluations.clone(),
                _ => Evaluations {
                    asked: never(),
                    ..evaluations.clone()
                },
            },
            scheduler: scheduler.clone(),
            busy: Arc::clone(&busy),
            stop: stop.clone(),
            queues: queues_meter.clone(),
            status: board.worker(&format!("teacher-{lane}")),
            observer: Arc::clone(&observer),
        })
        .collect();
    let student = StudentLane {
        plan: Arc::clone(&plan),
        needs,
        factory: student,
        input: labelled.iter().map(|queue| queue.1.clone()).collect(),
        control: control_receiver,
        copies,
        evaluated: evaluated_receiver,
        scheduler,
        saves,
        journal: Arc::clone(&journal),
        observer: Arc::clone(&observer),
        teacher_busy: busy,
        teacher_perplexities: known,
        first_sent: Arc::clone(&first_sent),
        resume: resume.clone(),
        outcome: Arc::clone(&outcome),
        stop: stop.clone(),
        queues: queues_meter.clone(),
        status: board.worker("student"),
        board: Arc::clone(&board),
    };
    let batcher = Batcher {
        seed: plan.seed,
        rows_per_step: plan.rows_per_step as usize,
        micro_rows: plan.micro_rows as usize,
        intervals: intervals_receiver,
        rows: row_queues.iter().map(|queue| queue.1.clone()).collect(),
        out: micro.iter().map(|queue| queue.0.clone()).collect(),
        hook: batcher_hook,
        stop,
        first_sent,
        queues: queues_meter.clone(),
        status: board.worker("batcher"),
    };
    let checkpointer = Checkpointer {
        input: saves_receiver,
        store: checkpoints,
        journal: Arc::clone(&journal),
        observer: Arc::clone(&observer),
        live: Arc::clone(&plan.live),
        queues: queues_meter,
        status: board.worker("checkpointer"),
    };
    let pipeline = Pipeline {
        control,
        board,
        outcome,
        journal,
        observer,
        loaders,
        teachers,
        _queues: on_board,
    };
    let mut bodies = vec![(WorkerId::Checkpointer, checkpointer.body())];
    for (lane, teacher) in pipeline.teachers.iter().enumerate() {
        bodies.push((WorkerId::Teacher(lane), teacher.clone().body()));
    }
    bodies.push((WorkerId::Student, student.body()));
    bodies.push((WorkerId::Batcher, batcher.body()));
    for (index, (loader, domain)) in pipeline.loaders.iter().zip(&plan.domains).enumerate() {
        let domain = domain.clone();
        bodies.push((WorkerId::Loader { index, domain }, loader.clone().body()));
    }
    for (worker, body) in bodies {
        let cell = match spawn(&worker, body, above.clone()).await {
            Ok(cell) => cell,
            Err(cause) => {
                let cause = cause.to_string();
                return Err(RunError::Start { worker, cause });
            }
        };
        alive.insert(cell.get_id(), (worker, cell));
    }
    Ok(Started {
        pipeline,
        alive,
        stop: stop_sender,
    })
}

/// Both ends of one bounded queue for each lane or domain.
fn queues<Item>(count: usize, depth: usize) -> Vec<(Sender<Item>, Receiver<Item>)> {
    (0..count).map(|_| bounded(depth)).collect()
}

/// What the interval after that of `state` follows from, where mixtures lag.
fn known_ahead(plan: &RunPlan, state: &LoopState) -> Option<IntervalEnd> {
    let ahead = state.ahead.as_ref().filter(|_| plan.lag > 0)?;
    let measured = !ahead.student.is_empty();
    Some(IntervalEnd {
        step: ahead.step,
        student: measured.then(|| ahead.perplexities(&[]).student),
        intervals: 1,
        training: TrainingSums::new(plan.domains.len()),
    })
}

/// Where each domain's loader begins: after the rows of all steps made.
fn start_cursors(plan: &RunPlan, resume: Option<&LoopState>) -> Vec<Cursor> {
    let Some(state) = resume else {
        return vec![Cursor::default(); plan.domains.len()];
    };
    let steps_done = state.step + 1 - state.interval.first_step;
    let order = state.interval.order(plan.seed);
    let rows = (steps_done * plan.rows_per_step) as usize;
    state
        .interval
        .cursors_after(&order, rows, &plan.domain_rows)
}

impl<T: Teacher + 'static> Pipeline<T> {
    /// Restarts a loader or a teacher, on the same queues, with what it had in hand.
    pub(super) async fn restart(
        &self,
        worker: &WorkerId,
        above: ActorCell,
    ) -> Result<ActorCell, Exit> {
        let body = match worker {
            WorkerId::Loader { index, .. } => self.loaders[*index].clone().body(),
            WorkerId::Teacher(lane) => self.teachers[*lane].clone().body(),
            _ => return Err(Exit::Panicked("this part is never built again".to_owned())),
        };
        spawn(worker, body, above).await
    }

    /// Reports a restart.
    pub(super) fn restarted(&self, worker: &WorkerId, cause: &Exit) {
        let name = worker.to_string();
        metrics::WORKER_RESTARTS.with(&[&name]).increment(1);
        self.board.worker(&name).restarted();
        tracing::warn!(part = name, %cause, "built again after a failure");
        let message = format!("{name} is built again: {cause}");
        match self.journal.event_now(EventKind::Restarted, &message) {
            Ok(event) => self.observer.on_event(&event),
            Err(error) => tracing::error!(%error, "an event could not be written"),
        }
    }

    pub(super) fn take_outcome(&self) -> Option<Outcome> {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
