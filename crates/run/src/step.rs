//! What the engine reports about training, in the form that the training loop adds up.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use strum::Display;

/// Seconds by phase, in the order in which phases were added.
pub type PhaseSeconds = IndexMap<StepPhase, f64>;

/// The loss sums of a micro-batch over its predicted tokens (not means), and what they cost.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MicroBatchSums {
    /// Cross-entropy, nats.
    pub ce: f64,
    /// Divergence from the teacher, nats (times T² if that is enabled).
    pub kl: f64,
    /// Distance between filtered layers, mean over the layers; 0 without filters.
    pub layer: f64,
    /// The sums of each sequence, if the mixture needs them; otherwise empty.
    pub sequences: Vec<SequenceLoss>,
    /// Predicted tokens.
    pub targets: u64,
    /// Seconds by phase.
    pub seconds: PhaseSeconds,
    /// Floating-point operations of the teacher's labeling, including its LM head, which runs on the student's worker.
    pub teacher_flops: f64,
    /// Floating-point operations of the teacher that the cache saved.
    pub teacher_flops_saved: f64,
    /// Floating-point operations of the student, forward and backward.
    pub student_flops: f64,
}

impl MicroBatchSums {
    /// Adds the sums of another micro-batch of the step, except its sequences.
    pub fn add(&mut self, other: Self) {
        self.ce += other.ce;
        self.kl += other.kl;
        self.layer += other.layer;
        self.targets += other.targets;
        self.add_seconds(other.seconds);
        self.teacher_flops += other.teacher_flops;
        self.teacher_flops_saved += other.teacher_flops_saved;
        self.student_flops += other.student_flops;
    }

    /// Adds the seconds of phases.
    pub fn add_seconds(&mut self, by_phase: impl IntoIterator<Item = (StepPhase, f64)>) {
        for (phase, seconds) in by_phase {
            *self.seconds.entry(phase).or_default() += seconds;
        }
    }
}

/// The sums of a sequence over its predicted tokens, nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SequenceLoss {
    /// Cross-entropy.
    pub ce: f64,
    /// `max(student's - teacher's, 0)` of each prediction; 0 if the mixture does not need it.
    pub excess: f64,
}

/// The result of an update.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateStats {
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global gradient norm before clipping; not finite if the update was skipped for that reason.
    pub grad_norm: f64,
    /// Why the update was skipped, if it was. Then weights and moments are unchanged.
    pub skipped: Option<String>,
    /// Seconds by phase.
    pub seconds: PhaseSeconds,
}

/// A phase of a step on the student's worker. Phases do not overlap: their seconds add up to the step's.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Display,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StepPhase {
    /// Waiting for data.
    Data,
    /// Waiting for the teacher's output, or for a turn with `pipeline.time_slicing`.
    TeacherWait,
    /// The model's forward pass.
    Forward,
    /// Logits of both models, losses and their gradients.
    Head,
    /// The model's backward pass.
    Backward,
    /// Exchanging with the other ranks, only if there are several. Includes waiting for the slowest.
    Exchange,
    /// Clipping and AdamW.
    Optimizer,
}
