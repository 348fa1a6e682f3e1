//! The records of a run's files. Keys are stable. Maps have domain names as keys and are sorted.
//!
//! Numbers are written as the shortest decimal that reads back to the same bits. A number that is not finite
//! is written as `null` and read back as NaN.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize};
use strum::Display;

use crate::PhaseSeconds;

/// Numbers by domain name.
pub type ByDomain = BTreeMap<String, f64>;

/// A line of `run.jsonl`: one optimizer step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The step, from 1.
    pub step: u64,
    /// Mean loss per prediction, nats: `ce_loss + gamma * kd_loss`, and with TED `+ layer_weight * layer_loss`.
    #[serde(deserialize_with = "number_or_null")]
    pub loss: f64,
    /// Mean cross-entropy over the step's predictions.
    #[serde(deserialize_with = "number_or_null")]
    pub ce_loss: f64,
    /// Mean divergence from the teacher over the step's predictions, nats: the one that `objective.name` selects.
    #[serde(deserialize_with = "number_or_null")]
    pub kd_loss: f64,
    /// Weight of the divergence; 0 if there is none.
    pub gamma: f64,
    /// TED: squared difference between the filtered layers, averaged over the step's predictions, the filters' width,
    /// and the layers.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present_number_or_null"
    )]
    pub layer_loss: Option<f64>,
    /// TED: weight of `layer_loss`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_weight: Option<f64>,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Tokens that the step trained on, without padding: 0 if its update was skipped.
    pub tokens: u64,
    /// The interval whose mixture its sequences were drawn from.
    pub interval: u64,
    /// Why the update was skipped, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Seconds by phase.
    pub seconds: PhaseSeconds,
}

/// A line of `mixture.jsonl`: the mixture of an interval, written when it is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixtureLine {
    /// The interval, from 0.
    pub interval: u64,
    /// The last step before this mixture applies.
    pub step: u64,
    /// Name of the policy.
    pub policy: String,
    /// Weight of the discrepancy relative to the floor, if the policy has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// The weights that the policy decided.
    pub weights: ByDomain,
    /// The weights after limits, from which sequences are drawn.
    pub target: ByDomain,
    /// The weights that the update started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_weights: Option<ByDomain>,
    /// The student's perplexities at the last evaluation.
    pub student_perplexity: ByDomain,
    /// The teacher's perplexities.
    pub teacher_perplexity: ByDomain,
    /// Student's over teacher's perplexity.
    pub ratio: ByDomain,
    /// ln of the ratio, nats per token.
    pub gap: ByDomain,
    /// The step at which the student was evaluated; earlier than `step` if there was no evaluation since.
    pub evaluated_at_step: u64,
    /// The discrepancy factor of Eq. 1 in the DDK paper (interval 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discrepancy: Option<ByDomain>,
    /// The losses that the update used, nats. `odm` uses the training losses of the domains that were drawn; `sheared`
    /// uses the logarithms of the perplexities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<ByDomain>,
    /// The losses that `losses` was compared with (`sheared`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<ByDomain>,
    /// Each domain's excess over the reference model's loss, nats, each prediction clipped at 0 (`doremi-proxy`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excess: Option<ByDomain>,
    /// Mean of the weights over the updates so far (`doremi-proxy`): the result of the proxy run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_weights: Option<ByDomain>,
    /// Why the update was refused, if it was. Then the weights stay the same, and values that are not finite are left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A line of `mixture.jsonl`: what an interval drew, written when it has ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DrawnLine {
    /// The interval.
    pub interval: u64,
    /// By domain.
    pub drawn: BTreeMap<String, Drawn>,
}

/// What an interval drew from a domain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Drawn {
    /// Sequences.
    pub sequences: u64,
    /// Their tokens, without padding.
    pub tokens: u64,
    /// Epochs of the domain from the start of the run to the interval's end (1.5: halfway through the second).
    pub epochs: f64,
}

/// A line of `samples.jsonl`: one sequence that a step trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// The step.
    pub step: u64,
    /// The sequence's number in the domain's index.
    pub sequence: u64,
    /// The domain.
    pub domain: String,
    /// The interval whose mixture it was drawn from.
    pub interval: u64,
    /// Which epoch of the domain, from 0.
    pub epoch: u64,
    /// The documents in it.
    pub spans: Vec<SampleSpan>,
}

/// A span of a document in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleSpan {
    /// The document's number in the prepared domain.
    pub document: u64,
    /// The first token's position in the document.
    pub offset: u64,
    /// Number of tokens.
    pub tokens: u64,
}

/// A line of `events.jsonl`: something that happened. Resuming a run never removes these lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// Seconds since 1970.
    pub time: f64,
    /// The step after which it happened.
    pub step: u64,
    /// The kind of event.
    pub kind: EventKind,
    /// What happened, as text.
    pub message: String,
}

/// The current time, in the form that events and Prometheus use.
pub fn seconds_since_1970() -> f64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

impl EventLine {
    /// An event that happens now, after `step`.
    pub(crate) fn now(step: u64, kind: EventKind, message: &str) -> Self {
        Self {
            time: seconds_since_1970(),
            step,
            kind,
            message: message.to_owned(),
        }
    }
}

/// The kinds of events. They are in alphabetical order, because lists of kinds are sorted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum EventKind {
    /// The run trains without errors, but a setting or the data should change.
    Advice,
    /// A user changed settings while the run trained.
    Changed,
    /// The teacher's cache is full, or its disk is: nothing more is added to it.
    CacheFull,
    /// A user requested an evaluation.
    Evaluated,
    /// A finished run was extended.
    Extended,
    /// The run ended with an error.
    Failed,
    /// A label in the teacher's cache was damaged, and is computed again.
    LabelDamaged,
    /// A user paused the run.
    Paused,
    /// An update of the mixture was refused.
    Refused,
    /// A worker failed and was restarted.
    Restarted,
    /// A process resumed the run.
    Resumed,
    /// Old checkpoints could not be removed.
    RetentionFailed,
    /// A worker panicked, and the run was rewound to its last checkpoint.
    Rewound,
    /// Training went wrong, and the run was rewound to skip the steps at fault.
    RolledBack,
    /// A save failed.
    SaveFailed,
    /// A checkpoint was saved.
    Saved,
    /// A server of the teacher does not answer; the run waits for it.
    ServerAway,
    /// A server of the teacher answers again.
    ServerBack,
    /// A damaged checkpoint was set aside.
    SetAside,
    /// A device ran out of memory, and the run was rewound with smaller sizes.
    Shrunk,
    /// An update was skipped.
    Skipped,
    /// The loss spiked.
    Spike,
    /// A process started the run.
    Started,
    /// The run was set aside, to start over at step 0. Earlier `saved` events no longer count.
    StartedOver,
    /// The run was told to stop.
    Stopped,
    /// A user resumed a paused run.
    Unpaused,
    /// A kind from another version of DDK.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// The normal course of a run; all other kinds are incidents.
    pub const ROUTINE: [Self; 13] = [
        Self::Advice,
        Self::Changed,
        Self::Evaluated,
        Self::Extended,
        Self::Paused,
        Self::Resumed,
        Self::Saved,
        Self::ServerBack,
        Self::Started,
        Self::StartedOver,
        Self::Stopped,
        Self::Unpaused,
        Self::Other,
    ];

    /// Whether this is an incident, not part of the normal course of a run.
    pub fn is_incident(self) -> bool {
        !Self::ROUTINE.contains(&self)
    }
}

/// The limit that ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum StopReason {
    /// The maximum number of steps.
    MaxSteps,
    /// The maximum number of intervals.
    MaxIntervals,
    /// The token budget.
    MaxTokens,
    /// Every domain's gap is at most `run.target_gap`.
    TargetGap,
    /// `run.patience` evaluations did not improve the mean gap.
    Patience,
    /// The maximum number of epochs of the data.
    MaxEpochs,
}

/// `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Results by domain.
    pub domains: BTreeMap<String, DomainSummary>,
    /// Optimizer steps made.
    pub steps: u64,
    /// Intervals started.
    pub intervals: u64,
    /// Tokens trained on, without padding.
    pub tokens: u64,
    /// Time from the start of the program to its end, summed over restarts.
    pub seconds: f64,
    /// Time from the first batch sent to the last step, including evaluations.
    pub distill_seconds: f64,
    /// `tokens / distill_seconds`.
    pub tokens_per_second: f64,
    /// The teachers' busy time (CPU time over threads, or device time) within `distill_seconds`.
    pub teacher_busy_seconds: f64,
    /// The student worker's busy time, without its evaluations.
    pub student_busy_seconds: f64,
    /// Busy time of evaluations within `distill_seconds`.
    pub evaluation_seconds: f64,
    /// Time from an interval's last update to the first micro-batch of the next.
    pub boundary_seconds: f64,
    /// Time that training waited for snapshots. Checkpoints are written in the background.
    pub save_stall_seconds: f64,
    /// Time that the run was paused.
    pub paused_seconds: f64,
    /// (teacher + student + evaluation) / `distill_seconds`.
    pub overlap: f64,
    /// Average share of `distill_seconds` that a teacher replica waited for sequences although there was a mixture to
    /// draw them from.
    pub data_wait_share: f64,
    /// Floating-point operations of the teacher's labeling, computed from the models' shapes and the tokens that they
    /// processed.
    pub teacher_flops: f64,
    /// Floating-point operations of the teacher's labeling that the cache saved.
    #[serde(default)]
    pub teacher_flops_saved: f64,
    /// The part of `teacher_flops` that no cache saves: the LM head, which runs on the student's worker.
    #[serde(default)]
    pub teacher_head_flops: f64,
    /// Floating-point operations of the student's training, forward and backward.
    pub student_flops: f64,
    /// Floating-point operations of all evaluations: at the start, for each mixture, and at the end. Includes the
    /// teacher's evaluation if its perplexities were not known.
    pub evaluation_flops: f64,
    /// The part of `evaluation_flops` that evaluated the teacher; 0 if its perplexities were known.
    #[serde(default)]
    pub teacher_evaluation_flops: f64,
    /// Floating-point operations of the student's evaluations that decided mixtures: all but the last one, if the
    /// policy uses perplexities.
    pub mixture_flops: f64,
    /// `mixture_flops / (teacher_flops + teacher_flops_saved + student_flops)`: the cost of steering relative to plain
    /// distillation.
    pub mixture_flops_share: f64,
    /// `boundary_seconds / distill_seconds`: the cost of steering in time, including draining and refilling the queues.
    pub mixture_seconds_share: f64,
    /// Largest resident memory of the process.
    pub peak_rss_bytes: u64,
    /// The limit that ended the run.
    pub stop_reason: StopReason,
    /// Which student was exported, and where.
    pub exported: String,
    /// The step of that student's checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exported_step: Option<u64>,
    /// The same work without overlap, if it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
}

/// Results on a domain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DomainSummary {
    /// The student's perplexity before the first step.
    #[serde(deserialize_with = "number_or_null")]
    pub student_perplexity_before: f64,
    /// The student's perplexity after the last step.
    #[serde(deserialize_with = "number_or_null")]
    pub student_perplexity_after: f64,
    /// The teacher's perplexity.
    #[serde(deserialize_with = "number_or_null")]
    pub teacher_perplexity: f64,
    /// Student's over teacher's perplexity before the first step.
    #[serde(deserialize_with = "number_or_null")]
    pub ratio_before: f64,
    /// The ratio after the last step.
    #[serde(deserialize_with = "number_or_null")]
    pub ratio_after: f64,
    /// ln(student's / teacher's perplexity) before the first step, nats per token.
    #[serde(deserialize_with = "number_or_null")]
    pub gap_before: f64,
    /// The gap after the last step.
    #[serde(deserialize_with = "number_or_null")]
    pub gap_after: f64,
    /// The domain's share of all tokens trained on.
    pub token_share: f64,
}

/// A measurement of teacher and student one after the other, each on all threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Serial {
    /// Threads that the two used in turn.
    pub threads: u64,
    /// Steps measured.
    pub steps: u64,
    /// Throughput of these steps.
    pub tokens_per_second: f64,
}

fn present_number_or_null<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<f64>, D::Error> {
    number_or_null(deserializer).map(Some)
}

fn number_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StepPhase;

    #[test]
    fn kinds_sort_and_read_as_they_are_written() {
        let kinds = ["failed", "save_failed", "saved", "started", "started_over"];
        let read: Vec<EventKind> = kinds
            .map(|kind| serde_json::from_value(kind.into()).unwrap())
            .to_vec();
        assert!(read.is_sorted());
        assert_eq!(
            read.iter().map(EventKind::to_string).collect::<Vec<_>>(),
            kinds
        );
        assert!(read[1].is_incident() && !read[2].is_incident());
        let unknown: EventKind = serde_json::from_str(r#""melted""#).unwrap();
        assert_eq!(unknown, EventKind::Other);
    }

    #[test]
    fn numbers_keep_their_bits_and_nan_survives() {
        let line = StepRecord {
            step: 1,
            loss: 0.1 + 0.2,
            ce_loss: f64::MIN_POSITIVE,
            kd_loss: f64::NAN,
            gamma: 0.2,
            learning_rate: 3e-5,
            grad_norm: 1.0 / 3.0,
            tokens: 4096,
            seconds: PhaseSeconds::from([(StepPhase::Forward, 0.25)]),
            ..StepRecord::default()
        };
        let text = serde_json::to_string(&line).unwrap();
        assert!(text.starts_with(r#"{"step":1,"loss":0.30000000000000004,"#));
        let back: StepRecord = serde_json::from_str(&text).unwrap();
        assert_eq!(back.loss.to_bits(), line.loss.to_bits());
        assert_eq!(back.ce_loss.to_bits(), line.ce_loss.to_bits());
        assert!(
            back.kd_loss.is_nan()
                && text.contains(r#""kd_loss":null"#)
                && !text.contains("skipped")
        );
        assert!(!text.contains("layer"), "only TED has layers");
        let with_layers = StepRecord {
            layer_loss: Some(f64::NAN),
            layer_weight: Some(1.0),
            ..line
        };
        let text = serde_json::to_string(&with_layers).unwrap();
        let back: StepRecord = serde_json::from_str(&text).unwrap();
        assert!(back.layer_loss.is_some_and(f64::is_nan) && back.layer_weight == Some(1.0));
    }
}
