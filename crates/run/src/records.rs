//! The records of a run's files. Keys are stable; maps are by domain name and sorted.
//!
//! Numbers are written as the shortest decimal that reads back to the same bits. A number that is not finite
//! is written as `null` and read back as NaN.

use std::{
    collections::BTreeMap,
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize};

use crate::PhaseSeconds;

/// Numbers by domain name.
pub type ByDomain = BTreeMap<String, f64>;

/// A line of `run.jsonl`: one optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Weight of the divergence; 0 where there is none.
    pub gamma: f64,
    /// TED: mean squared difference between the filtered layers, over the step's predictions, the filters'
    /// width and the layers.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present_number_or_null"
    )]
    pub layer_loss: Option<f64>,
    /// TED: weight of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_weight: Option<f64>,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    #[serde(deserialize_with = "number_or_null")]
    pub grad_norm: f64,
    /// Tokens that the step trained on, without padding: 0 if its update was skipped.
    pub tokens: u64,
    /// The interval whose mixture its sequences were drawn by.
    pub interval: u64,
    /// Why the update was not made, if it was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Seconds by phase.
    pub seconds: PhaseSeconds,
}

/// A line of `mixture.jsonl`: the mixture of an interval, when it is set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MixtureLine {
    /// The interval, from 0.
    pub interval: u64,
    /// The last step before this mixture applies.
    pub step: u64,
    /// Name of the policy.
    pub policy: String,
    /// Weight of the discrepancy against the floor, where the policy has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// What the policy decided.
    pub weights: ByDomain,
    /// The weights after limits, by which rows are drawn.
    pub target: ByDomain,
    /// The weights that the update started from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_weights: Option<ByDomain>,
    /// The student's perplexities, as they were measured last.
    pub student_perplexity: ByDomain,
    /// The teacher's perplexities.
    pub teacher_perplexity: ByDomain,
    /// Student's over teacher's.
    pub ratio: ByDomain,
    /// Its logarithm, nats per token.
    pub gap: ByDomain,
    /// The step at which the student was evaluated; before `step` where nothing was measured since.
    pub evaluated_at_step: u64,
    /// Eq. 1 (interval 0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discrepancy: Option<ByDomain>,
    /// The losses that the update was made from, nats: `odm`'s are those of training, of the domains that
    /// were drawn; `sheared`'s the logarithms of the perplexities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub losses: Option<ByDomain>,
    /// The losses that those were held against (`sheared`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<ByDomain>,
    /// Each domain's excess over the reference model's loss, nats, each prediction clipped at 0 (`doremi-proxy`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub excess: Option<ByDomain>,
    /// Mean of the weights over the updates so far (`doremi-proxy`): what it is run for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_weights: Option<ByDomain>,
    /// Why the update was refused; the weights stayed, and values that are not finite are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A line of `mixture.jsonl`: what an interval drew, when it has ended.
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
    /// Epochs of the domain since the run began, at the interval's end (1.5: half-way through the second).
    pub epochs: f64,
}

/// A line of `samples.jsonl`: one sequence that a step was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleLine {
    /// The step.
    pub step: u64,
    /// The sequence's number in the domain's index.
    pub sequence: u64,
    /// The domain.
    pub domain: String,
    /// The interval whose mixture it was drawn by.
    pub interval: u64,
    /// Which epoch of the domain, from 0.
    pub epoch: u64,
    /// The documents in it.
    pub spans: Vec<SampleSpan>,
}

/// A stretch of a document in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleSpan {
    /// The document's number in the prepared domain.
    pub document: u64,
    /// The first token, counted in the document.
    pub offset: u64,
    /// How many.
    pub tokens: u64,
}

/// A line of `events.jsonl`: something that happened, never cut.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventLine {
    /// Seconds since 1970.
    pub time: f64,
    /// The step after which it happened.
    pub step: u64,
    /// What kind.
    pub kind: EventKind,
    /// In words.
    pub message: String,
}

/// Now, as events and Prometheus have it.
pub fn seconds_since_1970() -> f64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

impl EventLine {
    /// Something that happens now, after this step.
    pub(crate) fn now(step: u64, kind: EventKind, message: &str) -> Self {
        Self {
            time: seconds_since_1970(),
            step,
            kind,
            message: message.to_owned(),
        }
    }
}

/// What kind of thing happened, in alphabetical order: lists of kinds are sorted by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// Somebody changed settings while the run trained.
    Changed,
    /// Somebody asked for the student's perplexities.
    Evaluated,
    /// A run that was done trains on.
    Extended,
    /// The run ended with an error.
    Failed,
    /// Somebody paused the run.
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
    /// A damaged checkpoint was set aside.
    SetAside,
    /// A device ran out of memory, and the run was rewound with smaller sizes.
    Shrunk,
    /// An update was skipped.
    Skipped,
    /// The loss was a spike.
    Spike,
    /// A process started the run.
    Started,
    /// The run was set aside, to start again at step 0. The saves before this no longer count.
    StartedOver,
    /// The run was told to stop.
    Stopped,
    /// Somebody told a paused run to train on.
    Unpaused,
    /// A kind that only another version knows.
    #[serde(other)]
    Other,
}

impl EventKind {
    /// The normal course of a run; all other kinds are incidents.
    pub const ROUTINE: [Self; 11] = [
        Self::Changed,
        Self::Evaluated,
        Self::Extended,
        Self::Paused,
        Self::Resumed,
        Self::Saved,
        Self::Started,
        Self::StartedOver,
        Self::Stopped,
        Self::Unpaused,
        Self::Other,
    ];

    /// Whether somebody who reads about the run wants to know of it.
    pub fn is_incident(self) -> bool {
        !Self::ROUTINE.contains(&self)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// Why a run is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The set number of steps.
    MaxSteps,
    /// The set number of intervals.
    MaxIntervals,
    /// The token budget.
    MaxTokens,
    /// Every domain's gap is at most `run.target_gap`.
    TargetGap,
    /// The set number of epochs of the data.
    MaxEpochs,
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Results by domain.
    pub domains: BTreeMap<String, DomainSummary>,
    /// Optimizer steps made.
    pub steps: u64,
    /// Intervals begun.
    pub intervals: u64,
    /// Tokens trained on, without padding.
    pub tokens: u64,
    /// From the start of the program to its end, sums over restarts.
    pub seconds: f64,
    /// From the first batch sent to the last step, evaluations included.
    pub distill_seconds: f64,
    /// `tokens / distill_seconds`.
    pub tokens_per_second: f64,
    /// The teachers' busy time (CPU time over threads, or device time) within `distill_seconds`.
    pub teacher_busy_seconds: f64,
    /// The student worker's, without its evaluations.
    pub student_busy_seconds: f64,
    /// Busy time of evaluations within `distill_seconds`.
    pub evaluation_seconds: f64,
    /// Time from an interval's last update to the first micro-batch of the next.
    pub boundary_seconds: f64,
    /// Time that training waited for snapshots; saves are written beside it.
    pub save_stall_seconds: f64,
    /// Time that somebody paused the run for.
    pub paused_seconds: f64,
    /// (teacher + student + evaluation) / `distill_seconds`.
    pub overlap: f64,
    /// Share of `distill_seconds` that a replica waited for rows on average, although a mixture to draw
    /// them by was set.
    pub data_wait_share: f64,
    /// Floating-point operations of the teacher's labeling, from the models' shapes and the tokens that went
    /// through them.
    pub teacher_flops: f64,
    /// Of the student's training, forward and backward.
    pub student_flops: f64,
    /// Of all evaluations: at the start, for each mixture, at the end; the teacher's where they were not known.
    pub evaluation_flops: f64,
    /// Of those evaluations that mixtures were decided by: all but the last one, where the policy goes by perplexities.
    pub mixture_flops: f64,
    /// `mixture_flops / (teacher_flops + student_flops)`: what steering costs beside plain distillation.
    pub mixture_flops_share: f64,
    /// `boundary_seconds / distill_seconds`: the same as time, with the draining and filling of the queues.
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
    /// The same work done one part after the other, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
}

/// Results on a domain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DomainSummary {
    /// The student's perplexity before the first step.
    #[serde(deserialize_with = "number_or_null")]
    pub student_perplexity_before: f64,
    /// And after the last.
    #[serde(deserialize_with = "number_or_null")]
    pub student_perplexity_after: f64,
    /// The teacher's.
    #[serde(deserialize_with = "number_or_null")]
    pub teacher_perplexity: f64,
    /// Student's over teacher's, before.
    #[serde(deserialize_with = "number_or_null")]
    pub ratio_before: f64,
    /// And after.
    #[serde(deserialize_with = "number_or_null")]
    pub ratio_after: f64,
    /// ln(student's / teacher's), nats per token, before.
    #[serde(deserialize_with = "number_or_null")]
    pub gap_before: f64,
    /// And after.
    #[serde(deserialize_with = "number_or_null")]
    pub gap_after: f64,
    /// The domain's share of all tokens trained on.
    pub token_share: f64,
}

/// Teacher and student one after the other on all threads.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Serial {
    /// Threads that both used in turn.
    pub threads: u64,
    /// Steps measured.
    pub steps: u64,
    /// Their rate.
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
            layer_loss: None,
            layer_weight: None,
            learning_rate: 3e-5,
            grad_norm: 1.0 / 3.0,
            tokens: 4096,
            interval: 0,
            skipped: None,
            seconds: PhaseSeconds::from([(StepPhase::Forward, 0.25)]),
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
