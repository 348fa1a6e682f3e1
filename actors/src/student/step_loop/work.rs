//! The work of a step: the sums of this process's micro-batches, and those of the other ranks.

use std::{mem, ops::Range, time::Instant};

use ddk_mixture::TrainingSums;
use ddk_run::{MicroBatchSums, StepPhase, records::SampleLine};
use ddk_settings::Settings;
use ddk_telemetry::{RankStatus, metrics};

use super::{StepLoop, Taken};
use crate::{
    StepDraw, Student,
    agreement::{
        BatchWork, Facts, Point, RankSeconds, StepWork, fact, hash, hash_samples, in_order,
    },
    batch::tokens,
    worker::Exit,
};

/// A micro-batch: the range of its sequences among those of the step, and its sums. No sums if the step is on the skip
/// list.
pub(super) type Batch = (Range<usize>, Option<MicroBatchSums>);

/// The work of a step so far.
#[derive(Debug, Default)]
pub(super) struct StepAccumulator {
    /// This process's micro-batches, in order.
    pub(super) batches: Vec<Batch>,
    /// The seconds of this process; at the step's end, also the sums of all micro-batches.
    pub(super) sums: MicroBatchSums,
    /// Tokens of the step's sequences, by domain.
    pub(super) drawn: Vec<u64>,
    /// Tokens that went through the student.
    pub(super) processed: u64,
    /// Seconds that the student waited for micro-batches.
    pub(super) waited: f64,
    /// Seconds that the teachers spent labeling while the student worked. They are not part of the step's time, and so
    /// not among its phases in `run.jsonl`.
    pub(super) teacher_seconds: f64,
    pub(super) samples: Vec<SampleLine>,
    pub(super) losses: TrainingSums,
}

impl<S: Student> StepLoop<'_, S> {
    /// Adds the sums of all micro-batches in order of position, so that the sums are the same for any number of ranks.
    pub(super) fn add_up(
        &mut self,
        draw: &StepDraw,
        batches: Vec<Batch>,
        accumulator: &mut StepAccumulator,
    ) {
        for (rows, sums) in batches {
            let samples = &draw.samples[rows];
            let Some(sums) = sums else {
                accumulator.sums.ce = f64::NAN;
                continue;
            };
            self.totals.teacher_flops += sums.teacher_flops;
            self.totals.teacher_flops_saved += sums.teacher_flops_saved;
            self.totals.student_flops += sums.student_flops;
            for (sample, loss) in samples.iter().zip(&sums.sequences) {
                let predictions = sample.sequence.num_targets();
                let domain = usize::from(sample.domain);
                let losses = &mut accumulator.losses;
                losses.add_row(domain, loss.ce, loss.excess, predictions);
            }
            accumulator.sums.add(sums);
            accumulator.processed += tokens(samples);
        }
        for sample in &draw.samples {
            accumulator.drawn[usize::from(sample.domain)] += sample.sequence.tokens.len() as u64;
            accumulator.samples.push(self.sample(draw, sample));
        }
    }

    /// The micro-batches of all ranks. `None` if a rank has given the step up.
    pub(super) fn join(
        &mut self,
        draw: &StepDraw,
        accumulator: &mut StepAccumulator,
    ) -> Result<Option<Vec<Batch>>, Exit> {
        let own = mem::take(&mut accumulator.batches);
        if self.context.peers.is_none() {
            return Ok(Some(own));
        }
        let message = own
            .iter()
            .map(|(rows, sums)| BatchWork::new(rows, sums.as_ref()));
        let message = Some(message.collect());
        let mut facts = vec![
            fact("the interval", draw.interval.index),
            fact(
                "the mixture",
                hash(draw.interval.weights.iter().map(|weight| weight.to_bits())),
            ),
            fact("the sequences", hash_samples(&draw.samples)),
        ];
        facts.extend(self.facts());
        let works = self.exchange_work(draw.step, facts, message, accumulator.waited)?;
        let exchange = [(StepPhase::Exchange, self.last_exchange)];
        accumulator.sums.add_seconds(exchange);
        let Some(all) = in_order(draw.step, draw.samples.len(), works)? else {
            return Ok(None);
        };
        // This process's teachers have counted their own.
        let of_own = own.into_iter().map(|(rows, _)| tokens(&draw.samples[rows]));
        let of_others = tokens(&draw.samples) - of_own.sum::<u64>();
        metrics::MODEL_TOKENS
            .with(&["teacher"])
            .increment(of_others);
        let batch = |batch: BatchWork| (batch.rows.clone(), batch.sums());
        Ok(Some(all.into_iter().map(batch).collect()))
    }

    /// Gives up the step in progress, together with the other ranks.
    pub(crate) fn give_up(&mut self) -> Result<Taken, Exit> {
        let accumulator = self.accumulator.take().unwrap_or_default();
        if self.context.peers.is_some() {
            let (step, facts) = (self.step() + 1, self.facts());
            self.exchange_work(step, facts, None, accumulator.waited)?;
        }
        Ok(Taken::GaveUp)
    }

    /// What must be equal on all ranks after the last step.
    fn facts(&self) -> Facts {
        let live = self.plan.live.get(Settings::to_toml);
        let live = live.unwrap_or_else(|error| error.to_string());
        vec![
            fact("the settings", hash(live.bytes().map(u64::from))),
            fact("trained tokens", self.state.totals.all_tokens()),
            // This form names a number exactly.
            fact("the last loss", format!("{:?}", self.last_loss)),
            fact("the last gradient norm", format!("{:?}", self.last_norm)),
        ]
    }

    /// Exchanges the ranks' work in a step, and shows how each spent its time.
    fn exchange_work(
        &mut self,
        step: u64,
        facts: Facts,
        batches: Option<Vec<BatchWork>>,
        waiting: f64,
    ) -> Result<Vec<StepWork>, Exit> {
        let worker = self.worker;
        let busy = self.student.busy_seconds();
        let work = StepWork {
            batches,
            seconds: RankSeconds {
                busy: busy - std::mem::replace(&mut self.busy_at_exchange, busy),
                waiting,
                exchange: self.last_exchange,
            },
            // Nothing arrives on the other ranks.
            copy: worker.evaluated.try_recv().ok().map(Into::into),
        };
        let began = Instant::now();
        let mut works = worker.exchange((step, Point::Update), facts, work)?;
        self.last_exchange = began.elapsed().as_secs_f64();
        let first = works.first_mut().and_then(|work| work.copy.take());
        self.arrived = first.map(Into::into);
        let mut ranks = Vec::with_capacity(works.len());
        for (rank, work) in works.iter().enumerate() {
            let RankSeconds {
                busy,
                waiting,
                exchange,
            } = work.seconds;
            let parts = [("busy", busy), ("waiting", waiting), ("exchange", exchange)];
            for (part, seconds) in parts {
                let gauge = metrics::RANK_SECONDS.with(&[&rank.to_string(), part]);
                gauge.set(seconds);
            }
            ranks.push(RankStatus {
                rank,
                busy,
                waiting,
                exchange,
            });
        }
        self.context.board.set_ranks(ranks);
        Ok(works)
    }
}
