//! How the ranks of a run agree. Every rank decides for itself, by pure functions of the run's state. What only one
//! rank knows, or what must not depend on timing, the ranks exchange at fixed points of the student's loop:
//!
//! | point | what is exchanged |
//! |---|---|
//! | the start | what makes the runs alike: seed, slots, the step to resume from; the teacher's perplexities if known |
//! | the end of a step | the sums of each rank's micro-batches, or that a rank gives the step up |
//! | after a change of settings | whether rank 0 could write it |
//! | about once a second while rank 0 works on something alone, or during a pause | whether it is done |
//!
//! Every message also has the flags and commands that a rank has heard, and what must be equal on all ranks so far. If
//! that differs, the run ends: a checkpoint of ranks that disagree would be of no run.

use std::{ops::Range, sync::Arc};

use ddk_corpus::Sample;
use ddk_run::{MicroBatchSums, PhaseSeconds, SequenceLoss, Source, control::Command};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{Peers, PortError};

/// A point of the student's loop at which the ranks exchange messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum Point {
    /// Before the first step of this process.
    #[strum(to_string = "the start")]
    Start,
    /// Before the update of a step.
    #[strum(to_string = "the update")]
    Update,
    /// While the run is paused.
    #[strum(to_string = "a pause")]
    Pause,
    /// While rank 0 measures the teacher's perplexities.
    #[strum(to_string = "the teacher's evaluation")]
    Teacher,
    /// While rank 0 evaluates a copy of the student.
    #[strum(to_string = "the evaluation of a copy")]
    Copy,
    /// While rank 0 writes a checkpoint.
    #[strum(to_string = "a save")]
    Save,
    /// After rank 0 has written a change of settings.
    #[strum(to_string = "a change of settings")]
    Change,
}

/// What must be equal on all ranks: name and value.
pub type Facts = Vec<(String, String)>;

/// A message at a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Message<Content> {
    /// The step and the point.
    step: u64,
    point: String,
    facts: Facts,
    heard: Heard,
    content: Content,
}

/// What a rank has heard from outside since its last message.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heard {
    /// Whether it was told to stop.
    pub stop: bool,
    /// Users' commands, in order. Only rank 0 receives any.
    pub commands: Vec<(Command, Source)>,
}

/// The messages of all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct Agreed<Content> {
    /// What the ranks together have heard.
    pub heard: Heard,
    /// The contents in order of rank.
    pub contents: Vec<Content>,
}

/// Exchanges a message at a point of `step`.
///
/// # Errors
/// If a rank is lost, if the ranks are at different points, or if their facts differ.
pub fn exchange<Content: Serialize + DeserializeOwned>(
    peers: &Arc<dyn Peers>,
    (step, point): (u64, Point),
    facts: Facts,
    heard: Heard,
    content: Content,
) -> Result<Agreed<Content>, PortError> {
    let message = Message {
        step,
        point: point.to_string(),
        facts,
        heard,
        content,
    };
    let unreadable =
        |error| PortError::Other(format!("a message of step {step} at {point}: {error}"));
    let bytes = serde_json::to_vec(&message).map_err(unreadable)?;
    let received = peers.exchange(&bytes).map_err(|error| {
        PortError::Other(format!(
            "the exchange of step {step} at {point} failed: {error}"
        ))
    })?;
    let parse = |bytes: &Vec<u8>| serde_json::from_slice::<Message<Value>>(bytes);
    let messages: Result<Vec<_>, _> = received.iter().map(parse).collect();
    let messages = messages.map_err(unreadable)?;
    compare(&messages)?;
    let mut agreed = Agreed {
        heard: Heard::default(),
        contents: Vec::with_capacity(messages.len()),
    };
    for message in messages {
        agreed.heard.stop |= message.heard.stop;
        agreed.heard.commands.extend(message.heard.commands);
        let content = serde_json::from_value(message.content).map_err(unreadable)?;
        agreed.contents.push(content);
    }
    Ok(agreed)
}

/// Refuses messages of different points or with different facts.
fn compare(messages: &[Message<Value>]) -> Result<(), PortError> {
    let Some(first) = messages.first() else {
        return Err(PortError::Other(
            "no rank took part in an exchange".to_owned(),
        ));
    };
    let step = first.step;
    for (rank, message) in messages.iter().enumerate().skip(1) {
        if (message.step, &message.point) != (step, &first.point) {
            let text = format!(
                "ranks disagree at step {step}: rank {rank} is at {} of step {}, rank 0 at {} of step {step}",
                message.point, message.step, first.point
            );
            return Err(PortError::Other(text));
        }
        for (name, value) in &message.facts {
            let of_first = first.facts.iter().find(|(other, _)| other == name);
            if let Some((_, other)) = of_first.filter(|(_, other)| other != value) {
                let text = format!(
                    "ranks disagree at step {step} about {name}: {value} on rank {rank}, {other} on rank 0"
                );
                return Err(PortError::Other(text));
            }
        }
    }
    Ok(())
}

/// A fact.
pub fn fact(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

/// A short hash of numbers, for a fact that has many.
pub fn hash(numbers: impl IntoIterator<Item = u64>) -> String {
    let mut hasher = blake3::Hasher::new();
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// A hash of the sequences of a step.
pub fn hash_samples(samples: &[Sample]) -> String {
    hash(samples.iter().flat_map(|sample| {
        let number = sample.sequence.number;
        [u64::from(sample.domain), sample.epoch, sample.index, number]
    }))
}

/// A number by its bits: JSON has no NaN, and nothing may be rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bits(u64);

impl From<f64> for Bits {
    fn from(number: f64) -> Self {
        Self(number.to_bits())
    }
}

impl From<Bits> for f64 {
    fn from(bits: Bits) -> Self {
        Self::from_bits(bits.0)
    }
}

/// Numbers by their bits.
pub fn to_bits(numbers: &[f64]) -> Vec<Bits> {
    numbers.iter().copied().map(Bits::from).collect()
}

/// The numbers with these bits.
pub fn of_bits(bits: &[Bits]) -> Vec<f64> {
    bits.iter().copied().map(f64::from).collect()
}

/// A rank's message at the end of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepWork {
    /// The sums of its micro-batches, in order. `None` if it gives the step up.
    pub batches: Option<Vec<BatchWork>>,
    /// What it did since its last such message.
    pub seconds: RankSeconds,
    /// From rank 0: the result of a copy's evaluation that has arrived.
    pub copy: Option<CopyResult>,
}

/// The seconds of a rank in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RankSeconds {
    /// Its student computed.
    pub busy: f64,
    /// Its student waited for the teacher or for data.
    pub waiting: f64,
    /// The exchange at the end of the step before.
    pub exchange: f64,
}

/// The result of evaluating a copy of the student.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyResult {
    /// The step after which the copy was made.
    pub step: u64,
    /// Its perplexities by domain.
    pub student: Vec<Bits>,
    /// Seconds that the worker was busy evaluating.
    pub busy_seconds: f64,
}

/// A micro-batch's sums, without its seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchWork {
    /// The range of its sequences among those of the step.
    pub rows: Range<usize>,
    /// Its sums. `None` if the step is on the skip list.
    sums: Option<BatchSums>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BatchSums {
    ce: Bits,
    kl: Bits,
    layer: Bits,
    /// Cross-entropy and excess of each sequence.
    sequences: Vec<[Bits; 2]>,
    targets: u64,
    teacher_flops: Bits,
    teacher_flops_saved: Bits,
    student_flops: Bits,
}

impl BatchWork {
    /// The message for a micro-batch.
    pub fn new(rows: &Range<usize>, sums: Option<&MicroBatchSums>) -> Self {
        let losses = |loss: &SequenceLoss| [loss.ce.into(), loss.excess.into()];
        let sums = sums.map(|sums| BatchSums {
            ce: sums.ce.into(),
            kl: sums.kl.into(),
            layer: sums.layer.into(),
            sequences: sums.sequences.iter().map(losses).collect(),
            targets: sums.targets,
            teacher_flops: sums.teacher_flops.into(),
            teacher_flops_saved: sums.teacher_flops_saved.into(),
            student_flops: sums.student_flops.into(),
        });
        Self {
            rows: rows.clone(),
            sums,
        }
    }

    /// The micro-batch's sums.
    pub fn sums(&self) -> Option<MicroBatchSums> {
        let losses = |[ce, excess]: &[Bits; 2]| SequenceLoss {
            ce: (*ce).into(),
            excess: (*excess).into(),
        };
        self.sums.as_ref().map(|sums| MicroBatchSums {
            ce: sums.ce.into(),
            kl: sums.kl.into(),
            layer: sums.layer.into(),
            sequences: sums.sequences.iter().map(losses).collect(),
            targets: sums.targets,
            seconds: PhaseSeconds::default(),
            teacher_flops: sums.teacher_flops.into(),
            teacher_flops_saved: sums.teacher_flops_saved.into(),
            student_flops: sums.student_flops.into(),
        })
    }
}

/// The work of all ranks in order of position. `None` if a rank has given the step up.
///
/// # Errors
/// If the micro-batches are not the whole step, because the ranks divide it differently.
pub fn in_order(
    step: u64,
    rows: usize,
    works: Vec<StepWork>,
) -> Result<Option<Vec<BatchWork>>, PortError> {
    let works: Option<Vec<Vec<BatchWork>>> = works.into_iter().map(|work| work.batches).collect();
    let Some(works) = works else {
        return Ok(None);
    };
    let (mut all, mut next) = (Vec::new(), 0);
    for (rank, batches) in works.into_iter().enumerate() {
        for batch in batches {
            if batch.rows.start != next {
                return Err(missing(
                    step,
                    next,
                    &format!("rank {rank} has {} to {}", batch.rows.start, batch.rows.end),
                ));
            }
            next = batch.rows.end;
            all.push(batch);
        }
    }
    if next != rows {
        return Err(missing(step, next, "no rank has it"));
    }
    Ok(Some(all))
}

fn missing(step: u64, next: usize, found: &str) -> PortError {
    let text = format!(
        "ranks disagree at step {step}: expected sequence {next} of the step next, but {found}"
    );
    PortError::Other(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_keep_their_bits() {
        let sums = MicroBatchSums {
            ce: f64::NAN,
            kl: 0.1 + 0.2,
            layer: -0.0,
            sequences: vec![SequenceLoss {
                ce: f64::INFINITY,
                excess: f64::from_bits(1),
            }],
            targets: u64::MAX,
            teacher_flops: 1e300,
            student_flops: 2.5,
            ..MicroBatchSums::default()
        };
        let sent = BatchWork::new(&(2..4), Some(&sums));
        let text = serde_json::to_string(&sent).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let received: BatchWork = serde_json::from_value(value).unwrap();
        assert_eq!(received, sent);
        let back = received.sums().unwrap();
        let bits = |sums: &MicroBatchSums| [sums.ce, sums.kl, sums.layer].map(f64::to_bits);
        assert_eq!(bits(&back), bits(&sums));
        assert_eq!(
            (back.targets, back.sequences),
            (sums.targets, sums.sequences)
        );
        assert!(BatchWork::new(&(0..1), None).sums().is_none());
    }

    #[test]
    fn a_step_must_be_whole() {
        let work = |ranges: &[Range<usize>]| StepWork {
            batches: Some(
                ranges
                    .iter()
                    .map(|rows| BatchWork::new(rows, None))
                    .collect(),
            ),
            seconds: RankSeconds::default(),
            copy: None,
        };
        let of = |works| in_order(3, 4, works);
        let whole = of(vec![work(&[0..1, 1..2]), work(&[2..4])])
            .unwrap()
            .unwrap();
        assert_eq!(whole.len(), 3);
        for works in [
            vec![work(&[0..2]), work(&[3..4])],
            vec![work(&[0..2]), work(&[1..4])],
            vec![work(&[0..2]), work(&[2..3])],
        ] {
            let error = of(works).unwrap_err().to_string();
            assert!(
                error.contains("ranks disagree at step 3: expected sequence "),
                "{error}"
            );
        }
        let mut gave_up = work(&[]);
        gave_up.batches = None;
        assert_eq!(of(vec![work(&[0..4]), gave_up]), Ok(None));
    }
}
