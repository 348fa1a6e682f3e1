//! One domain's loader: reads its rows ahead of the batcher, for ever.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::{Receiver, Sender, select_biased};
use ddk_corpus::{Cursor, Sample};
use ddk_telemetry::{Queues, Worker};

use crate::{
    PortError,
    ports::RowsFactory,
    worker::{Body, Never, Ready},
};

/// Where a loader stands: the next row to hand on. It belongs to the supervisor, so that a loader that is
/// built again after a panic reads the row in hand once more, and none twice.
pub type LoaderSlot = Arc<Mutex<Cursor>>;

/// What a loader works with.
#[derive(Clone)]
pub struct DomainLoader {
    /// Index of the domain.
    pub domain: u16,
    /// Its rows of a pass.
    pub domain_rows: u64,
    /// Opens its rows.
    pub rows: RowsFactory,
    /// Where it stands.
    pub slot: LoaderSlot,
    /// Rows to the batcher.
    pub out: Sender<Sample>,
    /// Closed when the run ends.
    pub stop: Receiver<Never>,
    /// Counts what goes out.
    pub queues: Queues,
    /// Its line on the board.
    pub status: Worker,
}

impl DomainLoader {
    /// The worker's thread.
    pub fn body(self) -> Body {
        Box::new(move |ready| self.work(ready))
    }

    fn work(self, ready: Ready) -> Result<(), PortError> {
        let mut cursor = *self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = (self.rows)(usize::from(self.domain), cursor)?;
        ready.say();
        loop {
            self.status.computing();
            let sample = rows.read()?;
            self.status.waiting_for_output();
            select_biased! {
                recv(self.stop) -> _ => break,
                send(self.out, sample) -> sent => if sent.is_err() { break },
            }
            self.queues.rows.sent();
            cursor = cursor.advance(self.domain_rows, 1);
            *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = cursor;
        }
        self.status.stopped();
        Ok(())
    }
}
