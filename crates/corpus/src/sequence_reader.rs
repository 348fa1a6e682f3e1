//! Reads the sequences of a domain epoch by epoch, each epoch in its own order.

use std::sync::Arc;

use ddk_order::Permutation;
use serde::{Deserialize, Serialize};

use crate::{CorpusError, PreparedDomain, Sequence};

/// A position in the endless series of a domain's epochs. This is the entire state to save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// The epoch of the domain, from 0.
    pub epoch: u64,
    /// The next position in the epoch's order.
    pub index: u64,
}

impl Cursor {
    /// Returns the cursor after `count` more sequences of a domain with `rows` sequences.
    pub fn advance(self, rows: u64, count: u64) -> Self {
        let position =
            u128::from(self.epoch) * u128::from(rows) + u128::from(self.index) + u128::from(count);
        let rows = u128::from(rows.max(1));
        Self {
            epoch: (position / rows) as u64,
            index: (position % rows) as u64,
        }
    }

    /// Epochs of a domain with `rows` sequences so far (1.5: halfway through the second).
    pub fn passes(self, rows: u64) -> f64 {
        self.epoch as f64 + self.index as f64 / rows.max(1) as f64
    }
}

/// A sequence drawn for training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Index of its domain in the run's list.
    pub domain: u16,
    /// The epoch of the domain, from 0.
    pub epoch: u64,
    /// The position in the epoch's order.
    pub index: u64,
    /// The sequence.
    pub sequence: Sequence,
}

/// Reads a domain's sequences from a cursor on. Each epoch has every sequence once, in its own order drawn from
/// (seed, domain, epoch). At the end of an epoch, the next one starts.
#[derive(Debug)]
pub struct SequenceReader {
    domain: Arc<PreparedDomain>,
    number: u16,
    seed: u64,
    cursor: Cursor,
}

impl SequenceReader {
    /// Creates a reader that starts with the sequence at `cursor`. `number`: the domain's index in the run's list.
    pub fn new(domain: Arc<PreparedDomain>, number: u16, seed: u64, cursor: Cursor) -> Self {
        Self {
            domain,
            number,
            seed,
            cursor,
        }
    }

    /// Returns the next sequence and advances the cursor.
    ///
    /// # Errors
    /// If a prepared file cannot be read or is damaged.
    pub fn read(&mut self) -> Result<Sample, CorpusError> {
        let Cursor { epoch, index } = self.cursor;
        let (rows, label) = (
            self.domain.rows(),
            format!("rows of {}", self.domain.name()),
        );
        let order = Permutation::new(rows, self.seed, &label, &[epoch]);
        let sequence = self.domain.sequence(order.at(index))?;
        self.cursor = self.cursor.advance(rows, 1);
        Ok(Sample {
            domain: self.number,
            epoch,
            index,
            sequence,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_goes_over_the_ends_of_passes() {
        let cursor = Cursor { epoch: 2, index: 8 };
        assert_eq!(cursor.advance(10, 1), Cursor { epoch: 2, index: 9 });
        assert_eq!(cursor.advance(10, 2), Cursor { epoch: 3, index: 0 });
        assert_eq!(cursor.advance(10, 25), Cursor { epoch: 5, index: 3 });
        assert_eq!(cursor.passes(10), 2.8);
    }
}
