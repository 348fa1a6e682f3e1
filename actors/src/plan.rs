//! The plan of a run, and the settings that may change while it trains.

use std::{collections::BTreeSet, fmt, sync::Arc};

use ddk_run::{
    Assignments,
    records::{ByDomain, StopReason},
};
use ddk_settings::{Recovery, Settings, keys};
use parking_lot::RwLock;

/// The plan of a run, fixed before its first step.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// Names of the domains, sorted.
    pub domains: Vec<String>,
    /// Sequences per epoch, by domain.
    pub domain_sequences: Vec<u64>,
    /// Each domain's share of the corpus's tokens.
    pub natural: Vec<f64>,
    /// The seed of every random choice.
    pub seed: u64,
    /// Sequences per optimizer step.
    pub sequences_per_step: u64,
    /// Parts of a step whose gradients are summed separately; divides `sequences_per_step`. The number of ranks divides
    /// it. The sums of the slots, and so the run's numbers, do not depend on the number of ranks.
    pub slots: u64,
    /// Sequences per micro-batch; divides the sequences of a slot.
    pub micro_rows: u64,
    /// Positions that the LM head takes at a time.
    pub chunk: i64,
    /// The last step, if limited: the smaller of both limits.
    pub max_steps: Option<u64>,
    /// A step that ends its interval whatever the length, because the learning-rate schedule ends there. This way, a
    /// run whose limit cut its last interval short resumes like a run with a larger limit.
    pub interval_end: Option<u64>,
    /// The limit that `max_steps` comes from.
    pub max_steps_reason: StopReason,
    /// The run ends with the step that reaches this number of trained tokens.
    pub max_tokens: Option<u64>,
    /// The run ends at an evaluation in which every domain's gap is at most this.
    pub target_gap: Option<f64>,
    /// The run ends after this many evaluations in a row that do not improve the mean gap.
    pub patience: Option<u64>,
    /// How much smaller than the best a mean gap must be to improve it, in nats per token.
    pub min_improvement: f64,
    /// Intervals between an evaluation and the mixture that follows from it: 0 (the pipeline waits at each
    /// interval's end) or 1.
    pub lag: u64,
    /// Steps between evaluations, if the mixture's policy does not need perplexities.
    pub evaluation_every: Option<u64>,
    /// Whether to save a checkpoint at each evaluation that is the best so far, in addition to the scheduled ones.
    pub keep_best: bool,
    /// The share of the learning rate's decay that is left at a step.
    pub decay_left: DecayLeft,
    /// Maximum epochs of a domain.
    pub max_passes: Option<f64>,
    /// Micro-batches that may wait in a queue. 0: they are handed over directly.
    pub queue_depth: usize,
    /// Number of teacher replicas.
    pub replicas: usize,
    /// Settings that may change while the run trains.
    pub live: Arc<Live>,
    /// Weight of the divergence, for `run.jsonl`.
    pub gamma: f64,
    /// Weight of the distance between layers, if the loss has one.
    pub layer_weight: Option<f64>,
    /// Steps whose data is skipped because training went wrong on it.
    pub skip: BTreeSet<u64>,
    /// What to do if training goes wrong.
    pub recovery: Recovery,
    /// Floating-point operations of one evaluation of the student.
    pub evaluation_flops: f64,
    /// Floating-point operations of the teacher's evaluation. 0 if its perplexities are known.
    pub teacher_evaluation_flops: f64,
    /// Seconds that the teacher's evaluation is expected to take.
    pub teacher_evaluation_seconds: Option<f64>,
    /// Approximate size of a checkpoint; 0 if unknown.
    pub checkpoint_bytes: u64,
}

/// The share of the learning rate's decay that is left at a step (from 1): 1 before the decay begins, 0 at its end.
#[derive(Clone)]
pub struct DecayLeft(Arc<dyn Fn(u64) -> f64 + Send + Sync>);

impl DecayLeft {
    /// Computes the share from the step.
    pub fn new(of_step: impl Fn(u64) -> f64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(of_step))
    }

    /// The share at a step.
    pub fn at(&self, step: u64) -> f64 {
        self.0(step)
    }
}

impl fmt::Debug for DecayLeft {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DecayLeft")
    }
}

/// The settings of a running run. Some may change, so read them here whenever they are needed.
#[derive(Debug)]
pub struct Live(RwLock<Settings>);

impl Live {
    /// The settings that a run starts with.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self(RwLock::new(settings)))
    }

    /// Reads from the settings.
    pub fn get<T>(&self, read: impl FnOnce(&Settings) -> T) -> T {
        read(&self.0.read())
    }

    /// The settings with these values changed.
    ///
    /// # Errors
    /// If a key or value is invalid, or if a setting must not change while the run trains.
    pub fn with(&self, values: &Assignments) -> Result<Settings, String> {
        let after = self.get(|settings| settings.with(values));
        let after = after.map_err(|error| error.to_string())?;
        let live = keys().filter(|key| key.live);
        let live: Vec<&str> = live.map(|key| key.path.as_str()).collect();
        match values.keys().find(|key| !live.contains(&key.as_str())) {
            None => Ok(after),
            Some(key) => Err(format!(
                "`{key}` cannot change while the run trains; these can: {}",
                live.join(", ")
            )),
        }
    }

    /// Replaces the settings.
    pub fn set(&self, settings: Settings) {
        *self.0.write() = settings;
    }
}

impl RunPlan {
    /// Turns a list by domain into a map by name.
    pub fn by_name(&self, values: &[f64]) -> ByDomain {
        self.known_by_name(values.iter().copied().map(Some))
    }

    /// Like [`Self::by_name`], without values that are not finite.
    pub fn finite_by_name(&self, values: &[f64]) -> ByDomain {
        let finite = |value: &f64| value.is_finite().then_some(*value);
        self.known_by_name(values.iter().map(finite))
    }

    /// Like [`Self::by_name`], without missing values.
    pub fn known_by_name(&self, values: impl IntoIterator<Item = Option<f64>>) -> ByDomain {
        let named = self.domains.iter().cloned().zip(values);
        named
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }
}
