//! What a run is to do.

use std::collections::{BTreeMap, BTreeSet};

use ddk_run::records::ByDomain;

/// The plan of a run; fixed before its first step.
#[derive(Debug, Clone, PartialEq)]
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
    /// The name of the limit that `max_steps` comes from.
    pub max_steps_reason: crate::StopReason,
    /// Ends the run at the end of the step in which so many tokens have been trained on.
    pub max_tokens: Option<u64>,
    /// Ends the run at an interval's end where no ratio is larger.
    pub stop_ratio: Option<f64>,
    /// Passes over a domain at the most.
    pub max_passes: Option<f64>,
    /// Micro-batches that may wait in a queue; 0: handed over directly.
    pub queue_depth: usize,
    /// Teachers side by side.
    pub teacher_lanes: usize,
    /// Steps between two checkpoints.
    pub checkpoint_every: u64,
    /// Weight of the divergence, for the lines.
    pub gamma: f64,
    /// Steps whose data is passed over, because training went wrong on it.
    pub skip: BTreeSet<u64>,
    /// What is done when numbers go wrong.
    pub guard: Guard,
}

/// What is done when numbers go wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    /// After so many skipped updates in a row the last checkpoint is restored.
    pub max_skipped: u64,
    /// What is done at a spike of the loss.
    pub spike: SpikeAction,
    /// A spike is over the mean by so many standard deviations.
    pub spike_sigmas: f64,
    /// Of so many losses before it.
    pub spike_window: usize,
    /// From so many losses on.
    pub spike_from: usize,
}

/// What is done at a spike of the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpikeAction {
    /// Nothing.
    Ignore,
    /// An event.
    Warn,
    /// The update is not made.
    Skip,
    /// The last checkpoint is restored, the step's data passed over.
    RollBack,
}

impl RunPlan {
    /// A list by domain as a map by name.
    pub fn by_name(&self, values: &[f64]) -> ByDomain {
        self.domains
            .iter()
            .cloned()
            .zip(values.iter().copied())
            .collect()
    }

    /// As [`Self::by_name`], without the values that are not finite.
    pub fn finite_by_name(&self, values: &[f64]) -> ByDomain {
        let mut map: BTreeMap<String, f64> = self.by_name(values);
        map.retain(|_, value| value.is_finite());
        map
    }
}
