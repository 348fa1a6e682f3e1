//! The batcher: turns an interval's plan into micro-batches. Their order depends on the plan alone.

use std::{sync::Arc, time::Instant};

use ddk_corpus::Sample;

use crate::{
    Interval, MicroBatch,
    channel::{MeteredReceiver, MeteredSender},
    ports::BatcherHook,
    worker::{Context, Exit, Ready},
};

/// An interval to draw, and how many of its steps are already completed.
#[derive(Debug)]
pub struct SetInterval {
    /// The interval.
    pub interval: Arc<Interval>,
    /// Steps to leave out, because their sequences were drawn before a restart.
    pub steps_done: u64,
}

/// What the batcher works with.
pub struct Batcher {
    /// Intervals from the weight scheduler.
    pub intervals: MeteredReceiver<SetInterval>,
    /// Sequences, by domain.
    pub rows: Vec<MeteredReceiver<Sample>>,
    /// Micro-batches, by replica.
    pub out: Vec<MeteredSender<Arc<MicroBatch>>>,
    /// Called before each step.
    pub hook: BatcherHook,
    /// What the workers share.
    pub context: Context,
}

impl Batcher {
    /// Runs the worker's thread: sends the micro-batches of one interval after another until the run ends.
    ///
    /// # Errors
    /// [`Exit::Done`] when the run ends, or [`Exit::Failed`] if the hook fails.
    pub fn work(self, ready: Ready) -> Result<(), Exit> {
        ready.say();
        let mut sequence = 0;
        loop {
            self.send_interval(&self.intervals.recv()?, &mut sequence)?;
        }
    }

    fn send_interval(&self, set: &SetInterval, sequence: &mut u64) -> Result<(), Exit> {
        let (plan, interval_set) = (&self.context.plan, Instant::now());
        let order = set.interval.order(plan.seed);
        let steps = order
            .chunks(plan.sequences_per_step as usize)
            .zip(set.interval.first_step..);
        for (domains, step) in steps.skip(set.steps_done as usize) {
            (self.hook)(step)?;
            let mut rows = domains
                .iter()
                .map(|&domain| self.rows[usize::from(domain)].recv())
                .collect::<Result<Vec<Sample>, Exit>>()?;
            let predictions = |sample: &Sample| sample.sequence.num_targets();
            // At least one: a step of prompts alone has no gradient, but must not divide by 0.
            let step_predictions = rows.iter().map(predictions).sum::<u64>().max(1);
            while !rows.is_empty() {
                let rest = rows.split_off(rows.len().min(plan.micro_rows as usize));
                let batch = MicroBatch {
                    sequence: *sequence,
                    step,
                    last_of_step: rest.is_empty(),
                    interval: Arc::clone(&set.interval),
                    samples: std::mem::replace(&mut rows, rest),
                    step_predictions,
                    interval_set,
                };
                self.context.facts.first_sent.get_or_init(Instant::now);
                let replica = (*sequence % self.out.len() as u64) as usize;
                self.out[replica].send(Arc::new(batch))?;
                *sequence += 1;
            }
        }
        Ok(())
    }
}
