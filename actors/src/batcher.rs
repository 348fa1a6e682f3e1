//! The batcher: turns an interval's plan into micro-batches. Their order depends on the plan alone.

use std::{sync::Arc, time::Instant};

use ddk_corpus::Sample;

use crate::{
    Interval, MicroBatch,
    channel::{MeteredReceiver, MeteredSender},
    ports::BatcherHook,
    worker::{Context, Exit, Ready},
};

/// What the batcher works with.
pub struct Batcher {
    /// Intervals from the weight scheduler.
    pub intervals: MeteredReceiver<Arc<Interval>>,
    /// The last completed step. Sequences up to it were drawn before a restart.
    pub after: u64,
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

    fn send_interval(&self, interval: &Arc<Interval>, sequence: &mut u64) -> Result<(), Exit> {
        let (plan, interval_set) = (&self.context.plan, Instant::now());
        let order = interval.order(plan.seed);
        let sequences = order.chunks(plan.sequences_per_step as usize);
        let steps = sequences.zip(interval.first_step..);
        for (domains, step) in steps.filter(|(_, step)| *step > self.after) {
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
                    interval: Arc::clone(interval),
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
