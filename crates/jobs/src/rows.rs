//! Rows of several domains in a fixed mixture, for work that needs no steering.

use std::sync::Arc;

use anyhow::Result;
use ddk_corpus::{Cursor, PreparedDomain, RowReader, Sequence};
use ddk_mixture::{Quota, interval_order};

/// `steps` batches of `rows` rows, drawn by `shares` and shuffled by the seed.
pub struct MixedRows {
    readers: Vec<RowReader>,
    order: Vec<u16>,
    rows: usize,
    next: usize,
}

impl MixedRows {
    pub fn new(
        domains: &[Arc<PreparedDomain>],
        shares: &[f64],
        seed: u64,
        rows: u64,
        steps: u64,
    ) -> Self {
        let counts = Quota::new(domains.len()).draw(shares, rows * steps);
        let readers = domains.iter().zip(0..).map(|(domain, number)| {
            RowReader::new(Arc::clone(domain), number, seed, Cursor::default())
        });
        Self {
            readers: readers.collect(),
            order: interval_order(&counts, seed, 0),
            rows: rows as usize,
            next: 0,
        }
    }

    /// The next step's rows.
    pub fn step(&mut self) -> Result<Vec<Sequence>> {
        let order = &self.order[self.next..(self.next + self.rows).min(self.order.len())];
        self.next += self.rows;
        order
            .iter()
            .map(|&domain| Ok(self.readers[usize::from(domain)].read()?.sequence))
            .collect()
    }
}

/// Predictions of a step.
pub fn predictions(rows: &[Sequence]) -> f64 {
    rows.iter().map(Sequence::num_targets).sum::<u64>() as f64
}
