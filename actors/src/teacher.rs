//! A teacher's lane: labels micro-batches in their order. Where mixtures lag, lane 0 also evaluates copies of
//! the student, as soon as it is asked: between two batches, or while a batch waits for room, so that nobody
//! who waits for the evaluation waits in vain.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use crossbeam::channel::{Receiver, Sender, TryRecvError, select_biased};
use ddk_mixture::TrainingSums;
use ddk_telemetry::{Queues, Worker, metrics};
use ractor::ActorRef;

use crate::{
    Labelled, MicroBatch, Observer, PortError, Teacher,
    ports::TeacherFactory,
    weight_scheduler::{IntervalEnd, WeightSchedulerMessage},
    worker::{Body, Never, Ready},
};

/// The micro-batch in hand. It belongs to the supervisor, so that a teacher that is built again after a panic
/// labels it once more, and its place in the order is kept.
pub type InFlight = Arc<Mutex<Option<Arc<MicroBatch>>>>;

/// A copy of the student to evaluate.
pub struct Evaluate<Weights> {
    /// The step after which it was made.
    pub step: u64,
    /// The copy.
    pub weights: Weights,
}

/// What an evaluation came to, for the student's books.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluatedCopy {
    /// The step after which the copy was made.
    pub step: u64,
    /// Its perplexities by domain.
    pub perplexities: Vec<f64>,
    /// Seconds that the lane was busy with it.
    pub busy_seconds: f64,
}

/// Evaluations on lane 0.
pub struct Evaluations<Weights> {
    /// Copies to evaluate; never more than one is on its way.
    pub asked: Receiver<Evaluate<Weights>>,
    /// The one in hand; as [`InFlight`].
    pub in_hand: Arc<Mutex<Option<Evaluate<Weights>>>>,
    /// What they came to.
    pub done: Sender<EvaluatedCopy>,
}

impl<Weights> Clone for Evaluations<Weights> {
    // Not derived: weights themselves are not cloned.
    fn clone(&self) -> Self {
        Self {
            asked: self.asked.clone(),
            in_hand: Arc::clone(&self.in_hand),
            done: self.done.clone(),
        }
    }
}

/// Seconds that all lanes have been busy with labelling in this process.
#[derive(Debug, Default)]
pub struct BusySum(Mutex<f64>);

impl BusySum {
    fn add(&self, seconds: f64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += seconds;
    }

    /// The sum so far.
    pub fn get(&self) -> f64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a teacher's lane works with.
pub struct TeacherLane<T: Teacher> {
    /// Number of the lane.
    pub lane: usize,
    /// Builds its teacher.
    pub factory: TeacherFactory<T>,
    /// Micro-batches of this lane.
    pub input: Receiver<Arc<MicroBatch>>,
    /// Labelled ones, in the same order.
    pub out: Sender<Labelled<T::Signal>>,
    /// The one in hand.
    pub in_flight: InFlight,
    /// The teacher's perplexities, once known; lane 0 finds them out.
    pub perplexities: Arc<OnceLock<Vec<f64>>>,
    /// Copies of the student to evaluate; on lane 0 alone anybody asks.
    pub evaluations: Evaluations<T::Weights>,
    /// Who waits for perplexities.
    pub scheduler: ActorRef<WeightSchedulerMessage>,
    /// Sum of all lanes.
    pub busy: Arc<BusySum>,
    /// Closed when the run ends.
    pub stop: Receiver<Never>,
    /// Counts what goes in and out.
    pub queues: Queues,
    /// Its line on the board.
    pub status: Worker,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
}

impl<T: Teacher> Clone for TeacherLane<T> {
    fn clone(&self) -> Self {
        Self {
            lane: self.lane,
            factory: Arc::clone(&self.factory),
            input: self.input.clone(),
            out: self.out.clone(),
            in_flight: Arc::clone(&self.in_flight),
            perplexities: Arc::clone(&self.perplexities),
            evaluations: self.evaluations.clone(),
            scheduler: self.scheduler.clone(),
            busy: Arc::clone(&self.busy),
            stop: self.stop.clone(),
            queues: self.queues.clone(),
            status: self.status.clone(),
            observer: Arc::clone(&self.observer),
        }
    }
}

impl<T: Teacher + 'static> TeacherLane<T> {
    /// The worker's thread.
    pub fn body(self) -> Body {
        Box::new(move |ready| self.work(ready))
    }

    fn work(self, ready: Ready) -> Result<(), PortError> {
        self.status.computing();
        let mut teacher = (self.factory)(self.lane)?;
        ready.say();
        if self.lane == 0 && self.perplexities.get().is_none() && !self.evaluate(&mut teacher)? {
            return Ok(());
        }
        let tokens = metrics::MODEL_TOKENS.with(&["teacher"]);
        while let Some((batch, data_wait)) = self.next(&mut teacher)? {
            self.status.computing();
            let (began, busy) = (Instant::now(), teacher.busy_seconds());
            let signal = teacher.label(&batch)?;
            let teacher_seconds = began.elapsed().as_secs_f64();
            tokens.increment(batch.tokens());
            self.busy.add(teacher.busy_seconds() - busy);
            let labelled = Labelled {
                batch,
                signal,
                data_wait,
                teacher_seconds,
            };
            if !self.send(&mut teacher, labelled)? {
                break;
            }
            self.queues.labelled.sent();
            self.set_in_flight(None);
        }
        self.status.stopped();
        Ok(())
    }

    /// Hands a labelled batch on; evaluates while there is no room for it. False where the run ends.
    fn send(&self, teacher: &mut T, labelled: Labelled<T::Signal>) -> Result<bool, PortError> {
        loop {
            self.status.waiting_for_output();
            select_biased! {
                recv(self.stop) -> _ => return Ok(false),
                recv(self.evaluations.asked) -> asked => {
                    if !self.evaluate_copy(teacher, asked.ok())? {
                        return Ok(false);
                    }
                }
                send(self.out, labelled) -> sent => return Ok(sent.is_ok()),
            }
        }
    }

    /// Evaluates what was asked for, or what was in hand when this lane failed. False where the run ends.
    fn evaluate_copy(
        &self,
        teacher: &mut T,
        asked: Option<Evaluate<T::Weights>>,
    ) -> Result<bool, PortError> {
        let Some(asked) = asked else {
            return Ok(false);
        };
        self.status.computing();
        let mut in_hand = self
            .evaluations
            .in_hand
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let copy = &*in_hand.insert(asked);
        let busy = teacher.busy_seconds();
        let phase = format!("evaluation of the student after step {}", copy.step);
        let between = self.between(&phase);
        let Some(perplexities) = teacher.perplexities_of(&copy.weights, &between)? else {
            return Ok(false);
        };
        let done = EvaluatedCopy {
            step: copy.step,
            perplexities: perplexities.clone(),
            busy_seconds: teacher.busy_seconds() - busy,
        };
        let ended = IntervalEnd {
            step: copy.step,
            intervals: 1,
            training: TrainingSums::new(perplexities.len()),
            student: Some(perplexities),
        };
        let ended = WeightSchedulerMessage::IntervalEnded(Box::new(ended));
        // The student first: its books hold what a mixture follows from before anything is drawn by it.
        let sent = self.evaluations.done.send(done).is_ok();
        let told = self.scheduler.cast(ended).is_ok();
        *in_hand = None;
        Ok(sent && told)
    }

    /// Called between two batches of an evaluation: tells how far it is, and cuts it off where the run has ended.
    fn between(&self, phase: &str) -> impl Fn(u64, u64) -> bool {
        let meter = self.status.meter(phase, "documents");
        move |done, total| {
            self.observer.on_progress(&meter.at(done, total));
            matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected))
        }
    }

    /// False where the run ended meanwhile.
    fn evaluate(&self, teacher: &mut T) -> Result<bool, PortError> {
        let between = self.between("evaluation of the teacher");
        let Some(perplexities) = teacher.perplexities(&between)? else {
            return Ok(false);
        };
        let _ = self.perplexities.set(perplexities.clone());
        let evaluated = WeightSchedulerMessage::TeacherEvaluated(perplexities);
        let _ = self.scheduler.cast(evaluated);
        Ok(true)
    }

    /// The next micro-batch and the seconds waited for its rows; `None` where the run ends.
    fn next(&self, teacher: &mut T) -> Result<Option<(Arc<MicroBatch>, f64)>, PortError> {
        let copy = self
            .evaluations
            .in_hand
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if copy.is_some() && !self.evaluate_copy(teacher, copy)? {
            return Ok(None);
        }
        let in_hand = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(batch) = in_hand {
            return Ok(Some((batch, 0.0)));
        }
        loop {
            self.status.waiting_for_input();
            let began = Instant::now();
            let batch = select_biased! {
                recv(self.stop) -> _ => return Ok(None),
                recv(self.evaluations.asked) -> asked => {
                    if !self.evaluate_copy(teacher, asked.ok())? {
                        return Ok(None);
                    }
                    continue;
                }
                recv(self.input) -> batch => match batch {
                    Ok(batch) => batch,
                    Err(_) => return Ok(None),
                },
            };
            self.queues.batches.received();
            self.set_in_flight(Some(Arc::clone(&batch)));
            // Before the interval was set there was nothing to wait for but the mixture.
            let waited = Instant::now().saturating_duration_since(began.max(batch.interval_set));
            return Ok(Some((batch, waited.as_secs_f64())));
        }
    }

    fn set_in_flight(&self, batch: Option<Arc<MicroBatch>>) {
        *self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = batch;
    }
}
