//! A domain's loader: reads its sequences ahead of the batcher, epoch after epoch.

use ddk_corpus::{Cursor, Sample};
use parking_lot::Mutex;

use crate::{
    channel::MeteredSender,
    ports::RowsFactory,
    worker::{Exit, Ready},
};

/// What a loader works with.
pub struct Loader {
    /// Index of the domain.
    pub domain: usize,
    /// Sequences per epoch.
    pub domain_sequences: u64,
    /// Opens the domain's sequences.
    pub rows: RowsFactory,
    /// The next sequence to send. The cursor outlives the thread, so a loader restarted after a panic reads the
    /// sequence in hand again and sends none twice.
    pub cursor: Mutex<Cursor>,
    /// Sequences for the batcher.
    pub out: MeteredSender<Sample>,
}

impl Loader {
    /// Runs the worker's thread: sends the domain's sequences to the batcher until the run ends.
    ///
    /// # Errors
    /// [`Exit::Done`] when the run ends, or [`Exit::Failed`] if the domain cannot be opened or a sequence cannot be
    /// read.
    pub fn work(&self, ready: Ready) -> Result<(), Exit> {
        let mut cursor = *self.cursor.lock();
        let mut rows = (self.rows)(self.domain, cursor)?;
        ready.say();
        loop {
            self.out.send(rows.read()?)?;
            cursor = cursor.advance(self.domain_sequences, 1);
            *self.cursor.lock() = cursor;
        }
    }
}
