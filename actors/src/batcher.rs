//! The batcher: turns an interval's plan into micro-batches, in an order that depends on the plan alone.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use crossbeam::channel::{Receiver, Sender, select_biased};
use ddk_telemetry::{Queues, Worker};

use crate::{
    Interval, MicroBatch, PortError,
    batch::BatchRow,
    supervisor::Never,
    worker::{Body, Ready},
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
    pub rows: Vec<Receiver<BatchRow>>,
    /// Micro-batches, by teacher lane.
    pub out: Vec<Sender<Arc<MicroBatch>>>,
    /// Closed when the run ends.
    pub stop: Receiver<Never>,
    /// When the first micro-batch was sent.
    pub first_sent: Arc<OnceLock<Instant>>,
    /// Counts what goes in and out.
    pub queues: Queues,
    /// Its line on the board.
    pub status: Worker,
}

/// The run is ending.
struct Stopped;

impl Batcher {
    /// The worker's thread.
    pub fn body(self) -> Body {
        Box::new(move |ready: Ready| {
            ready.say();
            let mut sequence = 0;
            // The run's end is the only way out of the loop.
            while let Ok(set) = self.next_interval() {
                if self.send_interval(&set, &mut sequence).is_err() {
                    break;
                }
            }
            self.status.stopped();
            Ok::<(), PortError>(())
        })
    }

    fn next_interval(&self) -> Result<SetInterval, Stopped> {
        self.status.waiting_for_input();
        select_biased! {
            recv(self.stop) -> _ => Err(Stopped),
            recv(self.intervals) -> set => set.map_err(|_| Stopped),
        }
    }

    fn send_interval(&self, set: &SetInterval, sequence: &mut u64) -> Result<(), Stopped> {
        let interval_set = Instant::now();
        let order = set.interval.order(self.seed);
        let steps = order
            .chunks(self.rows_per_step)
            .zip(set.interval.first_step..);
        for (domains, step) in steps.skip(set.steps_done as usize) {
            let mut rows = domains
                .iter()
                .map(|&domain| self.next_row(domain))
                .collect::<Result<Vec<BatchRow>, Stopped>>()?;
            let predictions = |row: &BatchRow| row.drawn.row.predictions();
            // At least one, so that a step of prompts alone is a step without a gradient.
            let step_predictions = rows.iter().map(predictions).sum::<u64>().max(1);
            while !rows.is_empty() {
                let rest = rows.split_off(self.micro_rows.min(rows.len()));
                let batch = MicroBatch {
                    sequence: *sequence,
                    step,
                    last_of_step: rest.is_empty(),
                    interval: Arc::clone(&set.interval),
                    rows: std::mem::replace(&mut rows, rest),
                    step_predictions,
                    interval_set,
                };
                self.send(batch)?;
                *sequence += 1;
            }
        }
        Ok(())
    }

    fn next_row(&self, domain: u16) -> Result<BatchRow, Stopped> {
        self.status.waiting_for_input();
        let row = select_biased! {
            recv(self.stop) -> _ => Err(Stopped),
            recv(self.rows[usize::from(domain)]) -> row => row.map_err(|_| Stopped),
        }?;
        self.status.computing();
        self.queues.rows.received();
        Ok(row)
    }

    fn send(&self, batch: MicroBatch) -> Result<(), Stopped> {
        let lane = (batch.sequence % self.out.len() as u64) as usize;
        self.first_sent.get_or_init(Instant::now);
        self.status.waiting_for_output();
        select_biased! {
            recv(self.stop) -> _ => Err(Stopped),
            send(self.out[lane], Arc::new(batch)) -> sent => sent.map_err(|_| Stopped),
        }?;
        self.queues.batches.sent();
        Ok(())
    }
}
