//! What a run is to do.

use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError, RwLock},
};

use ddk_run::{
    Assignments,
    records::{ByDomain, StopReason},
};
use ddk_settings::{Recovery, Settings, keys};

/// The plan of a run; fixed before its first step.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// Names of the domains, sorted.
    pub domains: Vec<String>,
    /// Rows of a pass, by domain.
    pub domain_sequences: Vec<u64>,
    /// Each domain's share of the corpus' tokens.
    pub natural: Vec<f64>,
    /// Every random choice is drawn from it.
    pub seed: u64,
    /// Rows of an optimizer step.
    pub sequences_per_step: u64,
    /// Rows of a micro-batch; divides `sequences_per_step`.
    pub micro_rows: u64,
    /// Positions that the student's head takes at a time.
    pub chunk: i64,
    /// The last step, where there is one (the smaller of both limits).
    pub max_steps: Option<u64>,
    /// A step with which an interval ends, whatever its length: where the schedule of the learning rate does.
    /// So a run whose last interval was cut short by its limit resumes like a run with a larger limit.
    pub interval_end: Option<u64>,
    /// The name of the limit that `max_steps` comes from.
    pub max_steps_reason: StopReason,
    /// Ends the run at the end of the step in which so many tokens have been trained on.
    pub max_tokens: Option<u64>,
    /// Ends the run at an evaluation in which no domain's gap is larger.
    pub target_gap: Option<f64>,
    /// Intervals between an evaluation and the mixture that follows from it: 0 (the pipeline waits at each
    /// interval's end) or 1.
    pub lag: u64,
    /// Perplexities are measured so often, in steps, where the mixture's policy does without.
    pub evaluation_every: Option<u64>,
    /// Whether a checkpoint is saved at each evaluation that is the best so far, beside the scheduled ones.
    pub keep_best: bool,
    /// Maximum passes over a domain.
    pub max_passes: Option<f64>,
    /// Micro-batches that may wait in a queue; 0: handed over directly.
    pub queue_depth: usize,
    /// Teachers side by side.
    pub replicas: usize,
    /// What may change while the run trains.
    pub live: Arc<Live>,
    /// Weight of the divergence, for the lines.
    pub gamma: f64,
    /// Weight of the distance between layers, where the loss has one.
    pub layer_weight: Option<f64>,
    /// Steps whose data is skipped, because training went wrong on it.
    pub skip: BTreeSet<u64>,
    /// What is done when numbers go wrong.
    pub recovery: Recovery,
    /// Floating-point operations of one evaluation of the student.
    pub evaluation_flops: f64,
    /// Of the teacher's, where it is still to be made: 0 where its perplexities are known.
    pub teacher_evaluation_flops: f64,
}

/// The settings of a run that trains. Some of them may change; whoever needs one reads it here.
#[derive(Debug)]
pub struct Live(RwLock<Settings>);

impl Live {
    /// What a run starts with.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self(RwLock::new(settings)))
    }

    /// Reads what is needed of them.
    pub fn get<T>(&self, read: impl FnOnce(&Settings) -> T) -> T {
        read(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What they would be with other values.
    ///
    /// # Errors
    /// A key or value that is wrong, or a setting that must not change while the run trains.
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

    /// Changes them.
    pub fn set(&self, settings: Settings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = settings;
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
