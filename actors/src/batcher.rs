//! The batcher: turns an interval's plan into micro-batches, in an order that depends on the plan alone.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use crossbeam::channel::{Receiver, Sender, select_biased};
use ddk_corpus::Sample;
use ddk_telemetry::{Queues, Worker};

use crate::{
    Interval, MicroBatch, PortError,
    ports::BatcherHook,
    worker::{Body, Never, Ready},
};

/// An interval to draw, and how many of its steps have been trained on already.
#[derive(Debug)]
pub struct SetInterval {
    /// The interval.
    pub interval: Arc<Interval>,
    /// Steps to leave out; their rows have been drawn before a restart.
    pub steps_done: u64,
}

/// What the batcher works with.
pub struct Batcher {
    /// Every random choice is drawn from it.
    pub seed: u64,
    /// Rows of a step.
    pub rows_per_step: usize,
    /// Rows of a micro-batch.
    pub micro_rows: usize,
    /// The intervals, as the weight scheduler sets them.
    pub intervals: Receiver<SetInterval>,
    /// Rows, by domain.
    pub rows: Vec<Receiver<Sample>>,
    /// Micro-batches, by teacher lane.
    pub out: Vec<Sender<Arc<MicroBatch>>>,
    /// Closed when the run ends.
    pub stop: Receiver<Never>,
    /// Called before each step.
    pub hook: BatcherHook,
    /// When the first micro-batch was sent.
    pub first_sent: Arc<OnceLock<Instant>>,
    /// Counts what goes in and out.
    pub queues: Queues,
    /// Its line on the board.
    pub status: Worker,
}

/// Why nothing more is drawn.
enum Ended {
    /// The run is ending.
    Stopped,
    /// A step cannot be drawn.
    Failed(PortError),
}

impl Batcher {
    /// The worker's thread.
    pub fn body(self) -> Body {
        Box::new(move |ready: Ready| {
            ready.say();
            let ended = self.draw();
            self.status.stopped();
            match ended {
                Ended::Stopped => Ok(()),
                Ended::Failed(error) => Err(error),
            }
        })
    }

    /// Interval after interval, to the run's end.
    fn draw(&self) -> Ended {
        let mut sequence = 0;
        loop {
            let sent = self
                .next_interval()
                .and_then(|set| self.send_interval(&set, &mut sequence));
            if let Err(ended) = sent {
                return ended;
            }
        }
    }

    fn next_interval(&self) -> Result<SetInterval, Ended> {
        self.status.waiting_for_input();
        select_biased! {
            recv(self.stop) -> _ => Err(Ended::Stopped),
            recv(self.intervals) -> set => set.map_err(|_| Ended::Stopped),
        }
    }

    fn send_interval(&self, set: &SetInterval, sequence: &mut u64) -> Result<(), Ended> {
        let interval_set = Instant::now();
        let order = set.interval.order(self.seed);
        let steps = order
            .chunks(self.rows_per_step)
            .zip(set.interval.first_step..);
        for (domains, step) in steps.skip(set.steps_done as usize) {
            self.status.computing();
            (self.hook)(step).map_err(Ended::Failed)?;
            let mut rows = domains
                .iter()
                .map(|&domain| self.next_row(domain))
                .collect::<Result<Vec<Sample>, Ended>>()?;
            let predictions = |sample: &Sample| sample.sequence.num_targets();
            // At least one, so that a step of prompts alone is a step without a gradient.
            let step_predictions = rows.iter().map(predictions).sum::<u64>().max(1);
            while !rows.is_empty() {
                let rest = rows.split_off(self.micro_rows.min(rows.len()));
                let batch = MicroBatch {
                    sequence: *sequence,
                    step,
                    last_of_step: rest.is_empty(),
                    interval: Arc::clone(&set.interval),
                    samples: std::mem::replace(&mut rows, rest),
                    step_predictions,
                    interval_set,
                };
                self.send(batch)?;
                *sequence += 1;
            }
        }
        Ok(())
    }

    fn next_row(&self, domain: u16) -> Result<Sample, Ended> {
        self.status.waiting_for_input();
        let row = select_biased! {
            recv(self.stop) -> _ => Err(Ended::Stopped),
            recv(self.rows[usize::from(domain)]) -> row => row.map_err(|_| Ended::Stopped),
        }?;
        self.status.computing();
        self.queues.rows.received();
        Ok(row)
    }

    fn send(&self, batch: MicroBatch) -> Result<(), Ended> {
        let lane = (batch.sequence % self.out.len() as u64) as usize;
        self.first_sent.get_or_init(Instant::now);
        self.status.waiting_for_output();
        select_biased! {
            recv(self.stop) -> _ => Err(Ended::Stopped),
            send(self.out[lane], Arc::new(batch)) -> sent => sent.map_err(|_| Ended::Stopped),
        }?;
        self.queues.batches.sent();
        Ok(())
    }
}
