//! The pipeline: its queues, and what is needed to rebuild a worker. All wiring between actors happens here.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, OnceLock},
};

use crossbeam::channel::{Receiver, Sender, bounded, never, unbounded};
use ddk_corpus::{Cursor, Sample};
use ddk_mixture::Decision;
use ddk_run::control::Refusal;
use ddk_telemetry::{Queues, ShownQueue, metrics};
use parking_lot::Mutex;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};

use crate::{
    Generation, LabeledBatch, LoopState, MicroBatch, RunError, RunPlan, Student, Teacher,
    batcher::Batcher,
    channel::{MeteredReceiver, MeteredSender},
    checkpointer::Checkpointer,
    loader::Loader,
    messages::StudentCommand,
    mixture::{IntervalEnd, MixtureActor, MixtureMessage, MixtureState, Scheduler, publish},
    ports::{RowsFactory, TeacherFactory},
    student::{StudentWorker, Told},
    teacher::{Evaluate, EvaluatedCopy, TeacherWorker},
    worker::{Body, Context, Exit, Facts, Ready, WorkerId},
};

/// Sequences that a loader reads ahead. A sequence takes a few kilobytes; the queues of micro-batches are the large
/// ones.
const ROWS_AHEAD: usize = 64;

/// The body of a worker that can be restarted. It keeps the worker's work in hand.
type Restartable = Arc<dyn Fn(Ready) -> Result<(), Exit> + Send + Sync>;

pub(crate) struct Pipeline {
    pub(crate) context: Context,
    pub(crate) scheduler: ActorCell,
    /// Commands to the student.
    pub(crate) control: Sender<StudentCommand>,
    /// Dropped to close the stop channel.
    pub(crate) stop: Option<Sender<Infallible>>,
    queues: Queues,
    /// The queues' lines on the board.
    shown: Vec<ShownQueue>,
    restartable: HashMap<WorkerId, Restartable>,
}

/// A pipeline whose workers are not started yet.
pub(crate) struct Built {
    pub(crate) pipeline: Pipeline,
    /// In start order: a worker starts when those it talks to are ready.
    pub(crate) workers: Vec<(WorkerId, Body)>,
}

/// Builds the queues, the weight scheduler and every worker.
pub(crate) async fn build<T, S>(generation: Generation<T, S>) -> Result<Built, RunError>
where
    T: Teacher + 'static,
    S: Student<TeacherOutput = T::TeacherOutput, Weights = T::Weights> + 'static,
{
    let (plan, state) = (Arc::new(generation.plan), generation.state);
    let rank = generation.peers.as_ref().map_or(0, |peers| peers.rank());
    // Other ranks than the first take these from it, unless the checkpoint has them.
    let is_shared = |known: &Vec<f64>| rank == 0 || *known == state.baseline.teacher;
    let known = generation.teacher_perplexities.filter(is_shared);
    let known = known.map(OnceLock::from);
    let (stop, stopped) = bounded(0);
    let (control, commands) = unbounded();
    let context = Context {
        plan: Arc::clone(&plan),
        journal: generation.journal,
        overrides: generation.overrides,
        observer: generation.observer,
        board: generation.board,
        peers: generation.peers,
        facts: Arc::new(Facts {
            teacher_perplexities: known.unwrap_or_default(),
            ..Facts::default()
        }),
        stop: stopped,
    };
    let domains = plan.domains.iter().cloned();
    let loaders: Vec<WorkerId> = domains.map(WorkerId::Loader).collect();
    let teachers: Vec<WorkerId> = (0..plan.replicas).map(WorkerId::Teacher).collect();
    // The board shows workers in this order: loaders, teachers, student, batcher, checkpointer.
    for worker in loaders.iter().chain(&teachers) {
        context.line(worker);
    }
    let line = context.line(&WorkerId::Student);

    let (intervals, set_intervals) = bounded(2);
    // If mixtures lag, the evaluation that decides the interval after the one in `state`.
    let ahead = state.lagged_evaluation.as_ref();
    let ahead = ahead.filter(|_| plan.lag > 0);
    let scheduler = MixtureState {
        scheduler: Scheduler::new(Arc::clone(&plan), &state),
        intervals,
        student: control.clone(),
        finished: false,
        waiting: ahead.map(|ahead| IntervalEnd::lagged(ahead, plan.domains.len())),
        facts: Arc::clone(&context.facts),
    };
    let scheduler = start_scheduler(&plan, scheduler, &state).await;
    let scheduler = scheduler.map_err(RunError::lost)?;
    let mut pipeline = Pipeline {
        context: context.clone(),
        scheduler: scheduler.get_cell(),
        control,
        stop: Some(stop),
        queues: Queues::empty(),
        shown: Vec::new(),
        restartable: HashMap::new(),
    };
    let mut batcher = Batcher {
        intervals: context.end(set_intervals, None, &WorkerId::Batcher),
        after: state.step,
        rows: Vec::new(),
        out: Vec::new(),
        hook: generation.batcher,
        context: context.clone(),
    };
    let cursors = state.cursors(plan.seed, plan.sequences_per_step, &plan.domain_sequences);
    for (domain, (id, cursor)) in loaders.iter().zip(cursors).enumerate() {
        let rows = pipeline.add_loader(id, domain, cursor, &generation.rows);
        batcher.rows.push(rows);
    }
    let (copies, copied) = bounded(1);
    let (evaluated, evaluations) = bounded(1);
    // Saves continue after the run has stopped. The channel has no buffer, because a waiting snapshot would be one
    // more copy of the student in memory.
    let unstopped = Context {
        stop: never(),
        ..context.clone()
    };
    let (from, to) = (WorkerId::Student, WorkerId::Checkpointer);
    let (saves, saved) = unstopped.channel(0, &pipeline.queues.saves, &from, &to);
    let mut student = StudentWorker {
        input: Vec::new(),
        told: Told::new(
            context.end(commands, None, &WorkerId::Student),
            context.peers.is_some(),
        ),
        copies,
        evaluated: evaluations,
        scheduler: scheduler.clone(),
        saves,
        line,
        context: context.clone(),
    };
    for (replica, id) in teachers.iter().enumerate() {
        // Only replica 0 evaluates.
        let copies = if replica == 0 {
            copied.clone()
        } else {
            never()
        };
        let evaluations = (copies, evaluated.clone());
        let factory = Arc::clone(&generation.teacher);
        let (batches, labeled) =
            pipeline.add_teacher(id, replica, factory, evaluations, &scheduler);
        batcher.out.push(batches);
        student.input.push(labeled);
    }
    let checkpointer = Checkpointer {
        input: saved,
        store: generation.checkpoints,
        context,
    };

    let factory = generation.student;
    let mut workers: Vec<(WorkerId, Body)> = vec![(
        WorkerId::Checkpointer,
        Box::new(|ready| checkpointer.work(ready)),
    )];
    let again = |id: WorkerId| (id.clone(), pipeline.body(&id));
    workers.extend(teachers.into_iter().map(again));
    let work = |ready| student.work(factory, state, ready);
    workers.push((WorkerId::Student, Box::new(work)));
    workers.push((WorkerId::Batcher, Box::new(|ready| batcher.work(ready))));
    workers.extend(loaders.into_iter().map(again));
    Ok(Built { pipeline, workers })
}

/// Starts the weight scheduler and publishes the state that the run resumes with. Within an interval, it sends the
/// rest of that interval to the batcher. At an interval's end, the student evaluates first.
async fn start_scheduler(
    plan: &RunPlan,
    scheduler: MixtureState,
    state: &LoopState,
) -> Result<ActorRef<MixtureMessage>, ActorProcessingErr> {
    if let Some(last) = plan.max_steps {
        metrics::MAX_STEPS.with(&[]).set(last as f64);
    }
    metrics::CHECKPOINT_STEP.with(&[]).set(state.step as f64);
    if state.step > 0 {
        // A resumed run shows its mixture at once instead of waiting for the next one.
        let interval = &state.interval;
        let (teacher, decision) = (&state.baseline.teacher, Decision::default());
        publish(&scheduler.scheduler.line(interval, teacher, decision, None));
        let cursors = interval.cursors.iter().zip(&plan.domain_sequences);
        for (domain, (cursor, rows)) in plan.domains.iter().zip(cursors) {
            metrics::EPOCHS.with(&[domain]).set(cursor.passes(*rows));
        }
    }
    if !state.at_interval_end() {
        let rest = Arc::new(state.interval.clone());
        scheduler.intervals.try_send(rest)?;
    }
    let (scheduler, _) = Actor::spawn(None, MixtureActor, scheduler).await?;
    Ok(scheduler)
}

impl Pipeline {
    /// Adds a domain's loader, and returns the receiving end of its sequences.
    fn add_loader(
        &mut self,
        id: &WorkerId,
        domain: usize,
        cursor: Cursor,
        rows: &RowsFactory,
    ) -> MeteredReceiver<Sample> {
        let context = &self.context;
        let (out, received) =
            context.channel(ROWS_AHEAD, &self.queues.rows, id, &WorkerId::Batcher);
        let loader = Loader {
            domain,
            domain_sequences: context.plan.domain_sequences[domain],
            rows: Arc::clone(rows),
            cursor: Mutex::new(cursor),
            out,
        };
        let work = Arc::new(move |ready| loader.work(ready));
        self.restartable.insert(id.clone(), work);
        received
    }

    /// Adds a teacher worker, and returns the ends of its queues for the batcher and the student.
    fn add_teacher<T: Teacher + 'static>(
        &mut self,
        id: &WorkerId,
        replica: usize,
        factory: TeacherFactory<T>,
        (copies, evaluated): (Receiver<Evaluate<T::Weights>>, Sender<EvaluatedCopy>),
        scheduler: &ActorRef<MixtureMessage>,
    ) -> (
        MeteredSender<Arc<MicroBatch>>,
        MeteredReceiver<LabeledBatch<T::TeacherOutput>>,
    ) {
        let (context, depth) = (&self.context, self.context.plan.queue_depth);
        let (batches, input) = context.channel(depth, &self.queues.batches, &WorkerId::Batcher, id);
        let (out, labeled) = context.channel(depth, &self.queues.labeled, id, &WorkerId::Student);
        self.shown.extend([
            context.show(format!("batcher to {id}"), depth, &input),
            context.show(format!("{id} to student"), depth, &labeled),
        ]);
        let teacher = TeacherWorker {
            replica,
            factory,
            input,
            out,
            in_hand: Mutex::default(),
            copies,
            copy_in_hand: Mutex::default(),
            evaluated,
            scheduler: scheduler.clone(),
            line: context.line(id),
            context: context.clone(),
        };
        let work = Arc::new(move |ready| teacher.work(ready));
        self.restartable.insert(id.clone(), work);
        (batches, labeled)
    }

    /// Why this process refuses users' commands, if it is another rank than the first.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let rank = self.context.rank();
        let text = format!("only rank 0 of the run takes commands, and this is rank {rank}");
        (rank > 0).then_some(Refusal(text))
    }

    /// The body of a loader or a teacher. It uses the same queues each time, and resumes the work in hand.
    pub(crate) fn body(&self, worker: &WorkerId) -> Body {
        let work = Arc::clone(&self.restartable[worker]);
        Box::new(move |ready| work(ready))
    }
}
