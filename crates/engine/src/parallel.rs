//! How several processes share a step: its slots, and the sums over them.
//!
//! A step's micro-batches are cut by position into V slots. Gradients accumulate within a slot in order. The V sums
//! are then added by a fixed binary tree. V belongs to the run's numbers, so a run has the same bits on any number of
//! processes W that divides V: a process adds the subtree of its own slots ([`SlotSums`]), and all processes together
//! add the rest ([`crate::sharding`]).

use std::sync::Arc;

use ddk_distributed::Group;
use tch::{TchError, Tensor};

use crate::EngineError;

/// The slots of a step, and the processes that share them.
#[derive(Debug, Clone)]
pub struct Parallel {
    /// Slots of a step, V: a power of two.
    pub slots: usize,
    /// The processes, if there are several. Their number W divides V.
    pub group: Option<Arc<Group>>,
}

impl Default for Parallel {
    /// One process, one slot.
    fn default() -> Self {
        Self {
            slots: 1,
            group: None,
        }
    }
}

impl Parallel {
    /// The number of processes.
    pub fn size(&self) -> usize {
        self.group.as_ref().map_or(1, |group| group.size())
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.group.as_ref().map_or(0, |group| group.rank())
    }

    /// Slots of each process.
    pub(crate) fn slots_each(&self) -> usize {
        self.slots / self.size()
    }
}

/// Adds the gradients of this process's slots by a binary tree.
#[derive(Debug)]
pub(crate) struct SlotSums {
    /// Slots of this process in a step.
    slots: usize,
    /// Slots that have ended in this step.
    done: usize,
    /// Sums of complete subtrees, larger ones first. A step with one slot per process needs none.
    subtrees: Vec<Vec<Tensor>>,
}

impl SlotSums {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            done: 0,
            subtrees: Vec::new(),
        }
    }

    /// Ends a slot with these gradients. Returns true if they were set aside, so that the caller clears them for the
    /// next slot. After the last slot, they hold the sum over all slots.
    pub(crate) fn end_slot(&mut self, gradients: &[Tensor]) -> Result<bool, EngineError> {
        let _no_grad = tch::no_grad_guard();
        for _ in 0..self.done.trailing_ones() {
            let earlier = self.subtrees.pop().unwrap_or_default();
            for (gradient, earlier) in gradients.iter().zip(&earlier) {
                let _ = gradient.shallow_clone().f_add_(earlier)?;
            }
        }
        self.done += 1;
        if self.done == self.slots {
            self.done = 0;
            return Ok(false);
        }
        let copy = |gradient: &Tensor| {
            let mut copy = gradient.f_empty_like()?;
            copy.f_copy_(gradient)?;
            Ok::<_, TchError>(copy)
        };
        let kept = gradients.iter().map(copy);
        self.subtrees.push(kept.collect::<Result<_, _>>()?);
        Ok(true)
    }

    /// Forgets the slots of a step that makes no update.
    pub(crate) fn reset(&mut self) {
        self.done = 0;
        self.subtrees.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds by position, as the definition says.
    fn tree(values: &[f32]) -> f32 {
        match values {
            [one] => *one,
            _ => {
                let (left, right) = values.split_at(values.len() / 2);
                tree(left) + tree(right)
            }
        }
    }

    #[test]
    fn slots_are_added_by_a_binary_tree() {
        // Sums in any other order have other bits.
        let values = [1e8_f32, -1.0, 3.25e-3, 1e8, -2e8, 7.5, 1e-9, 0.1];
        for slots in [1, 2, 4, 8] {
            let mut sums = SlotSums::new(slots);
            for step in 0..2 {
                let mut gradient = Tensor::zeros([1], (tch::Kind::Float, tch::Device::Cpu));
                for (slot, value) in values[..slots].iter().enumerate() {
                    let _ = gradient.fill_(f64::from(*value));
                    let set_aside = sums.end_slot(&[gradient.shallow_clone()]).unwrap();
                    assert_eq!(set_aside, slot + 1 < slots, "step {step}");
                }
                let found = gradient.double_value(&[0]) as f32;
                assert_eq!(found.to_bits(), tree(&values[..slots]).to_bits());
            }
            assert!(sums.subtrees.is_empty());
        }
    }
}
