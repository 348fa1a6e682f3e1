//! Fake models: a teacher and a student whose state is a hash of everything they saw, in order. The student's gradients
//! are f32 numbers, summed by slot and then by a fixed tree, so another order or another slot gives another weight.

use std::sync::Arc;

use ddk_actors::{
    MicroBatch, Peers, PortError, Rows, Student, Teacher,
    ports::{Between, RunLink},
};
use ddk_corpus::{Cursor, Sample, Sequence, Span};
use ddk_run::{MicroBatchSums, PhaseSeconds, SequenceLoss, SnapshotFile, StepPhase, UpdateStats};

use super::{Hook, ROWS};

pub(super) fn mix(state: u64, value: u64) -> u64 {
    let mut mixed = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 29;
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (mixed >> 32)
}

fn hash_rows(batch: &MicroBatch) -> u64 {
    let samples = batch.samples().iter();
    samples.fold(batch.interval().index, |hash, sample| {
        mix(
            mix(hash, u64::from(sample.domain)),
            mix(sample.epoch, sample.sequence.number),
        )
    })
}

pub struct FakeTeacher {
    pub(super) hook: Hook,
    pub(super) labeled: u64,
}

impl Teacher for FakeTeacher {
    type TeacherOutput = u64;
    type Weights = FakeCopy;

    fn label(&mut self, batch: &MicroBatch, _: &dyn RunLink) -> Result<Option<u64>, PortError> {
        (self.hook)("label", batch.sequence)?;
        self.labeled += 1;
        Ok(Some(hash_rows(batch)))
    }

    fn perplexities(
        &mut self,
        _: &dyn RunLink,
        _: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        (self.hook)("evaluate teacher", 0)?;
        Ok(Some(vec![2.0, 3.0, 4.0]))
    }

    fn perplexities_of(
        &mut self,
        copy: &FakeCopy,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        (self.hook)("evaluate copy", copy.step)?;
        Ok((!between(0, 1)).then(|| perplexities(copy.weight)))
    }

    fn busy_seconds(&self) -> f64 {
        self.labeled as f64
    }
}

/// The weights of a fake student after a step.
pub struct FakeCopy {
    step: u64,
    weight: u64,
}

fn perplexities(weight: u64) -> Vec<f64> {
    let shade = |index: u64| (mix(weight, index) % 1000) as f64 / 1000.0;
    vec![2.2 + shade(0), 3.3 + shade(1), 4.4 + shade(2)]
}

pub struct FakeStudent {
    pub(super) weight: u64,
    /// A hash of the micro-batches of the slot in progress, and their gradients' sum.
    pub(super) pending: u64,
    pub(super) sum: f32,
    /// The hashes and sums of this rank's slots.
    pub(super) slots: Vec<(u64, f32)>,
    pub(super) peers: Option<Arc<dyn Peers>>,
    pub(super) step: u64,
    pub(super) hook: Hook,
    pub(super) full_disk: Vec<u64>,
    pub(super) live: Arc<ddk_actors::Live>,
}

impl FakeStudent {
    /// A collective operation: what all ranks send to it, in order of rank.
    fn collect<T>(&self, what: &str, own: T) -> Result<Vec<T>, PortError>
    where
        T: serde::Serialize + serde::de::DeserializeOwned,
    {
        let Some(peers) = &self.peers else {
            return Ok(vec![own]);
        };
        let sent = serde_json::to_vec(&(what, own)).unwrap();
        let received = peers.exchange(&sent)?;
        let parse = |bytes: &Vec<u8>| {
            let (other, content): (String, T) = serde_json::from_slice(bytes)
                .unwrap_or_else(|_| panic!("{what}: not {}", String::from_utf8_lossy(bytes)));
            assert_eq!(other, what, "the ranks are at different points");
            content
        };
        Ok(received.iter().map(parse).collect())
    }

    /// Whether an evaluation is cut off on any rank.
    fn is_cut_off(&self, told: bool) -> Result<bool, PortError> {
        Ok(self.collect("evaluation", told)?.contains(&true))
    }
}

/// Sums numbers by a fixed tree.
fn tree(numbers: &[f32]) -> f32 {
    match numbers {
        [] => 0.0,
        [number] => *number,
        _ => {
            let (left, right) = numbers.split_at(numbers.len() / 2);
            tree(left) + tree(right)
        }
    }
}

impl Student for FakeStudent {
    type TeacherOutput = u64;
    type Weights = FakeCopy;

    fn accumulate(&mut self, batch: &MicroBatch, signal: u64) -> Result<MicroBatchSums, PortError> {
        (self.hook)("accumulate", batch.sequence)?;
        assert_eq!(signal, hash_rows(batch), "another batch's signal");
        assert!(
            (batch.interval().first_step..=batch.interval().last_step()).contains(&batch.step())
        );
        self.pending = mix(self.pending, mix(signal, batch.draw.predictions));
        // Numbers of different sizes, so that rounding depends on the order.
        let gradient = (self.pending % 100_003) as f32 * 1.1;
        self.sum += gradient / (1.0 + (self.pending % 97) as f32);
        let loss = (self.pending % 1000) as f64 / 7.0;
        let shade = |index: usize| (mix(self.pending, index as u64) % 1000) as f64 / 100.0;
        let losses = (0..batch.samples().len()).map(|index| SequenceLoss {
            ce: shade(index),
            excess: shade(index) / 2.0,
        });
        let losses = losses.collect();
        if batch.last_of_slot {
            let slot = (
                std::mem::take(&mut self.pending),
                std::mem::take(&mut self.sum),
            );
            self.slots.push(slot);
        }
        let miscounted = (self.hook)("miscount", batch.sequence).is_err();
        Ok(MicroBatchSums {
            ce: loss,
            kl: loss / 3.0,
            layer: 0.0,
            sequences: losses,
            targets: batch.num_targets() + u64::from(miscounted),
            seconds: PhaseSeconds::from([
                (StepPhase::TeacherWait, 0.0),
                (StepPhase::Forward, 0.0),
                (StepPhase::Head, 0.0),
                (StepPhase::Backward, 0.0),
            ]),
            teacher_flops: 30.0 * batch.samples().len() as f64,
            teacher_flops_saved: 0.0,
            student_flops: 10.0 * batch.samples().len() as f64,
        })
    }

    fn update(&mut self, step: u64) -> Result<UpdateStats, PortError> {
        (self.hook)("update", step)?;
        if (self.hook)("no update", step).is_err() {
            return self.discard(step, "on purpose");
        }
        let learning_rate = self.live.get(|settings| settings.optimizer.lr);
        let slots = std::mem::take(&mut self.slots);
        let slots: Vec<(u64, f32)> = self.collect("update", slots)?.concat();
        let sums: Vec<f32> = slots.iter().map(|(_, sum)| *sum).collect();
        for (hash, _) in &slots {
            self.weight = mix(self.weight, *hash);
        }
        self.weight = mix(self.weight, u64::from(tree(&sums).to_bits()));
        self.weight = mix(self.weight, learning_rate.to_bits());
        self.step = step;
        Ok(UpdateStats {
            learning_rate,
            grad_norm: f64::from(tree(&sums)),
            skipped: None,
            seconds: PhaseSeconds::from([
                (StepPhase::TeacherWait, 0.0),
                (StepPhase::Optimizer, 0.0),
            ]),
        })
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, PortError> {
        (self.pending, self.sum) = (0, 0.0);
        self.slots.clear();
        self.step = step;
        Ok(UpdateStats {
            learning_rate: 1e-3,
            grad_norm: f64::NAN,
            skipped: Some(reason.to_owned()),
            seconds: PhaseSeconds::from([
                (StepPhase::TeacherWait, 0.0),
                (StepPhase::Optimizer, 0.0),
            ]),
        })
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        (self.hook)("evaluate student", self.step)?;
        let is_held = (self.hook)("evaluate until told", self.step).is_err();
        loop {
            if self.is_cut_off(between(0, 1))? {
                return Ok(None);
            }
            if !is_held {
                break;
            }
            std::thread::yield_now();
        }
        if (self.hook)("not finite", self.step).is_err() {
            return Ok(Some(vec![f64::NAN, 3.0, 4.0]));
        }
        Ok(Some(perplexities(self.weight)))
    }

    fn weights(&mut self) -> Result<FakeCopy, PortError> {
        let rank = self.peers.as_ref().map_or(0, |peers| peers.rank());
        assert_eq!(rank, 0, "only rank 0 makes copies");
        Ok(FakeCopy {
            step: self.step,
            weight: self.weight,
        })
    }

    fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, PortError> {
        (self.hook)("snapshot", self.step)?;
        let own = (self.step, self.weight);
        let all = self.collect("snapshot", own)?;
        assert!(all.iter().all(|of_rank| *of_rank == own), "{all:?}");
        let (weight, full) = (self.weight, self.full_disk.contains(&self.step));
        Ok(vec![SnapshotFile::new("weight", move |out| {
            if full {
                return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
            }
            write!(out, "{weight}")
        })])
    }

    fn busy_seconds(&self) -> f64 {
        self.step as f64
    }
}

pub struct FakeRows {
    pub(super) domain: u64,
    pub(super) cursor: Cursor,
    pub(super) hook: Hook,
}

impl Rows for FakeRows {
    fn read(&mut self) -> Result<Sample, PortError> {
        let rows = ROWS[self.domain as usize];
        let Cursor { epoch: pass, index } = self.cursor;
        (self.hook)("read", self.domain * 1000 + pass * rows + index)?;
        self.cursor = self.cursor.advance(rows, 1);
        let row = ddk_order::Permutation::new(rows, 1, "fake", &[self.domain, pass]).at(index);
        let length = 4 + row % 3;
        let spans = vec![Span {
            document: row,
            offset: 0,
            tokens: length,
        }];
        Ok(Sample {
            domain: self.domain as u16,
            epoch: pass,
            index,
            sequence: Sequence {
                number: row,
                spans,
                ..vec![7; length as usize].into()
            },
        })
    }
}
