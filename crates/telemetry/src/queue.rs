//! How much goes through the queues between workers, counted at both of their ends.

use metrics::{Counter, Gauge};

use crate::metrics::{QUEUE_RECEIVED, QUEUE_SENT, QUEUE_WAITING};

/// The queues of one kind, of all lanes and domains together. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    sent: Counter,
    received: Counter,
    waiting: Gauge,
}

impl Queue {
    /// Empty queues of this kind: what waited in those before them is gone.
    fn empty(kind: &str) -> Self {
        let waiting = QUEUE_WAITING.with(&[kind]);
        waiting.set(0.0);
        Self {
            sent: QUEUE_SENT.with(&[kind]),
            received: QUEUE_RECEIVED.with(&[kind]),
            waiting,
        }
    }

    /// An item was put in.
    pub fn sent(&self) {
        self.sent.increment(1);
        self.waiting.increment(1.0);
    }

    /// An item was taken out.
    pub fn received(&self) {
        self.received.increment(1);
        self.waiting.decrement(1.0);
    }
}

/// All queues of a pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Queues {
    /// Rows, from the loaders to the batcher.
    pub rows: Queue,
    /// Micro-batches, from the batcher to the teachers.
    pub batches: Queue,
    /// Labeled micro-batches, from the teachers to the student.
    pub labeled: Queue,
    /// Snapshots, from the student to the checkpointer.
    pub saves: Queue,
}

impl Queues {
    /// Those of a pipeline that begins.
    pub fn empty() -> Self {
        Self {
            rows: Queue::empty("sequences"),
            batches: Queue::empty("micro_batches"),
            labeled: Queue::empty("teacher_outputs"),
            saves: Queue::empty("checkpoints"),
        }
    }
}
