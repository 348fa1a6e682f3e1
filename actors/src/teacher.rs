//! A teacher's lane: labels micro-batches in their order.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Instant,
};

use crossbeam::channel::{Receiver, Sender, TryRecvError, select_biased};
use ddk_telemetry::{Queues, Worker, metrics};
use ractor::ActorRef;

use crate::{
    Labelled, MicroBatch, PortError, Teacher,
    evaluator::EvaluatorMessage,
    ports::TeacherFactory,
    supervisor::Never,
    worker::{Body, Ready},
};

/// The micro-batch in hand. It belongs to the supervisor, so that a teacher that is built again after a panic labels it once
/// more, and its place in the order is kept.
pub type InFlight = Arc<Mutex<Option<Arc<MicroBatch>>>>;

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
    /// Who waits for them.
    pub evaluator: ActorRef<EvaluatorMessage>,
    /// Sum of all lanes.
    pub busy: Arc<BusySum>,
    /// Closed when the run ends.
    pub stop: Receiver<Never>,
    /// Counts what goes in and out.
    pub queues: Queues,
    /// Its line on the board.
    pub status: Worker,
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
            evaluator: self.evaluator.clone(),
            busy: Arc::clone(&self.busy),
            stop: self.stop.clone(),
            queues: self.queues.clone(),
            status: self.status.clone(),
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
        let mut busy = teacher.busy_seconds();
        while let Some((batch, data_wait)) = self.next() {
            self.status.computing();
            let began = Instant::now();
            let signal = teacher.label(&batch)?;
            let teacher_seconds = began.elapsed().as_secs_f64();
            tokens.increment(batch.tokens());
            let now = teacher.busy_seconds();
            self.busy.add(now - busy);
            busy = now;
            let labelled = Labelled {
                batch,
                signal,
                data_wait,
                teacher_seconds,
            };
            self.status.waiting_for_output();
            select_biased! {
                recv(self.stop) -> _ => break,
                send(self.out, labelled) -> sent => if sent.is_err() { break },
            }
            self.queues.labelled.sent();
            self.set_in_flight(None);
        }
        self.status.stopped();
        Ok(())
    }

    /// False where the run ended meanwhile.
    fn evaluate(&self, teacher: &mut T) -> Result<bool, PortError> {
        let ended = || matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected));
        let Some(perplexities) = teacher.perplexities(&ended)? else {
            return Ok(false);
        };
        let _ = self.perplexities.set(perplexities.clone());
        let _ = self.evaluator.cast(EvaluatorMessage::Teacher(perplexities));
        Ok(true)
    }

    /// The next micro-batch and the seconds waited for its rows; `None` where the run ends.
    fn next(&self) -> Option<(Arc<MicroBatch>, f64)> {
        let in_hand = self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(batch) = in_hand {
            return Some((batch, 0.0));
        }
        self.status.waiting_for_input();
        let began = Instant::now();
        let batch = select_biased! {
            recv(self.stop) -> _ => None,
            recv(self.input) -> batch => batch.ok(),
        }?;
        self.queues.batches.received();
        self.set_in_flight(Some(Arc::clone(&batch)));
        // Before the interval was set there was nothing to wait for but the mixture.
        let waited = Instant::now().saturating_duration_since(began.max(batch.interval_set));
        Some((batch, waited.as_secs_f64()))
    }

    fn set_in_flight(&self, batch: Option<Arc<MicroBatch>>) {
        *self
            .in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = batch;
    }
}
