//! What a run is to do.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use ddk_run::records::{ByDomain, StopReason};
use ddk_settings::Guard;

/// The plan of a run; fixed before its first step.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// Names of the domains, sorted.
    pub domains: Vec<String>,
    /// Rows of a pass, by domain.
    pub domain_rows: Vec<u64>,
    /// Each domain's share of the corpus' tokens.
    pub natural: Vec<f64>,
    /// Every random choice is drawn from it.
    pub seed: u64,
    /// Rows of an optimizer step.
    pub rows_per_step: u64,
    /// Rows of a micro-batch; divides `rows_per_step`.
    pub micro_rows: u64,
    /// The last step, where there is one (the smaller of both limits).
    pub max_steps: Option<u64>,
    /// A step with which an interval ends, whatever its length: where the schedule of the learning rate does.
    /// So a run whose last interval was cut short by its limit resumes like a run with a larger limit.
    pub interval_end: Option<u64>,
    /// The name of the limit that `max_steps` comes from.
    pub max_steps_reason: StopReason,
    /// Ends the run at the end of the step in which so many tokens have been trained on.
    pub max_tokens: Option<u64>,
    /// Ends the run where perplexities are measured and no ratio is larger.
    pub stop_ratio: Option<f64>,
    /// Intervals between an evaluation and the mixture that follows from it: 0 (the pipeline waits at each
    /// interval's end) or 1.
    pub lag: u64,
    /// Perplexities are measured so often, in steps, where the mixture's policy does without.
    pub evaluation_every: Option<u64>,
    /// Whether a checkpoint is saved at each evaluation that is the best so far, beside the scheduled ones.
    pub keep_best: bool,
    /// Passes over a domain at the most.
    pub max_passes: Option<f64>,
    /// Micro-batches that may wait in a queue; 0: handed over directly.
    pub queue_depth: usize,
    /// Teachers side by side.
    pub teacher_lanes: usize,
    /// What may change while the run goes on.
    pub live: Arc<Live>,
    /// Weight of the divergence, for the lines.
    pub gamma: f64,
    /// Weight of the distance between layers, where the loss has one.
    pub layer_weight: Option<f64>,
    /// Steps whose data is passed over, because training went wrong on it.
    pub skip: BTreeSet<u64>,
    /// What is done when numbers go wrong.
    pub guard: Guard,
    /// Floating-point operations of one evaluation of the student.
    pub evaluation_flops: f64,
    /// Of the teacher's, where it is still to be made: 0 where its perplexities are known.
    pub teacher_evaluation_flops: f64,
}

/// Settings that may change while a run goes on; shared with whoever changes them.
#[derive(Debug, Default)]
pub struct Live {
    checkpoint_every: AtomicU64,
    keep: AtomicUsize,
    /// The bits of an f64.
    lr_end: AtomicU64,
}

impl Live {
    /// What a run starts with: steps between two checkpoints, how many of the newest stay, the learning rate
    /// at the end.
    pub fn new(checkpoint_every: u64, keep: usize, lr_end: f64) -> Arc<Self> {
        let live = Self::default();
        live.set(checkpoint_every, keep, lr_end);
        Arc::new(live)
    }

    /// Changes all of them.
    pub fn set(&self, checkpoint_every: u64, keep: usize, lr_end: f64) {
        self.checkpoint_every
            .store(checkpoint_every, Ordering::Relaxed);
        self.keep.store(keep, Ordering::Relaxed);
        self.lr_end.store(lr_end.to_bits(), Ordering::Relaxed);
    }

    /// Steps between two checkpoints, at least one.
    pub fn checkpoint_every(&self) -> u64 {
        self.checkpoint_every.load(Ordering::Relaxed).max(1)
    }

    /// How many of the newest checkpoints stay.
    pub fn keep(&self) -> usize {
        self.keep.load(Ordering::Relaxed)
    }

    /// The learning rate of the last step.
    pub fn lr_end(&self) -> f64 {
        f64::from_bits(self.lr_end.load(Ordering::Relaxed))
    }
}

impl RunPlan {
    /// A list by domain as a map by name.
    pub fn by_name(&self, values: &[f64]) -> ByDomain {
        self.known_by_name(values.iter().copied().map(Some))
    }

    /// As [`Self::by_name`], without the values that are not finite.
    pub fn finite_by_name(&self, values: &[f64]) -> ByDomain {
        let finite = |value: &f64| value.is_finite().then_some(*value);
        self.known_by_name(values.iter().map(finite))
    }

    /// As [`Self::by_name`], without those that there are not.
    pub fn known_by_name(&self, values: impl IntoIterator<Item = Option<f64>>) -> ByDomain {
        let named = self.domains.iter().cloned().zip(values);
        named
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}
