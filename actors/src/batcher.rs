//! The batcher: turns an interval's plan into micro-batches. Their order depends on the plan alone.
//!
//! A step's sequences are dealt out by position to the plan's slots, and the slots to the ranks, in equal parts. Every
//! rank draws all sequences, but only the micro-batches of its own slots go to its teachers.

use std::{ops::Range, sync::Arc, time::Instant};

use ddk_corpus::Sample;

use crate::{
    Interval, MicroBatch, RunPlan,
    batch::StepDraw,
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
            let samples = domains
                .iter()
                .map(|&domain| self.rows[usize::from(domain)].recv())
                .collect::<Result<Vec<Sample>, Exit>>()?;
            let predictions = |sample: &Sample| sample.sequence.num_targets();
            // At least one: a step of prompts alone has no gradient, but must not divide by 0.
            let predictions = samples.iter().map(predictions).sum::<u64>().max(1);
            let draw = Arc::new(StepDraw {
                step,
                interval: Arc::clone(interval),
                samples,
                predictions,
                interval_set,
            });
            let cuts = micro_batches(plan, self.context.rank(), self.context.ranks());
            let count = cuts.len();
            for (index, (rows, last_of_slot)) in cuts.into_iter().enumerate() {
                let batch = MicroBatch {
                    sequence: *sequence,
                    draw: Arc::clone(&draw),
                    rows,
                    last_of_slot,
                    last_of_step: index + 1 == count,
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

/// The micro-batches of a rank's slots in order: the range of each among the step's sequences, and whether it is the
/// last of its slot.
fn micro_batches(plan: &RunPlan, rank: usize, ranks: usize) -> Vec<(Range<usize>, bool)> {
    let (slots, micro_rows) = (plan.slots as usize, plan.micro_rows as usize);
    let slot_rows = plan.sequences_per_step as usize / slots;
    debug_assert!(
        (plan.sequences_per_step as usize).is_multiple_of(slots) && slots.is_multiple_of(ranks)
    );
    let own = slots / ranks;
    let of_slot = |slot: usize| {
        let end = (slot + 1) * slot_rows;
        let starts = (slot * slot_rows..end).step_by(micro_rows);
        starts.map(move |start| {
            let stop = end.min(start + micro_rows);
            (start..stop, stop == end)
        })
    };
    (rank * own..(rank + 1) * own).flat_map(of_slot).collect()
}
