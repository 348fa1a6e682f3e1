//! Counts the items that enter and leave the queues between workers.

use metrics::{Counter, Gauge};

use crate::metrics::{QUEUE_RECEIVED, QUEUE_SENT, QUEUE_WAITING};

/// The queues of one kind, for all replicas and domains together. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    sent: Counter,
    received: Counter,
    waiting: Gauge,
}

impl Queue {
    /// Empty queues of this kind. Items that waited in the queues before them are gone.
    fn empty(kind: &str) -> Self {
        let waiting = QUEUE_WAITING.with(&[kind]);
        waiting.set(0.0);
        Self {
            sent: QUEUE_SENT.with(&[kind]),
            received: QUEUE_RECEIVED.with(&[kind]),
            waiting,
        }
    }

    /// Counts an item that was put in.
    pub fn sent(&self) {
        self.sent.increment(1);
        self.waiting.increment(1.0);
    }

    /// Counts an item that was taken out.
    pub fn received(&self) {
        self.received.increment(1);
        self.waiting.decrement(1.0);
    }
}

/// All queues of a pipeline. Cheap to clone.
#[derive(Clone)]
pub struct Queues {
    /// Sequences, from the loaders to the batcher.
    pub rows: Queue,
    /// Micro-batches, from the batcher to the teachers.
    pub batches: Queue,
    /// Labeled micro-batches, from the teachers to the student.
    pub labeled: Queue,
    /// Snapshots, from the student to the checkpointer.
    pub saves: Queue,
}

impl Queues {
    /// The empty queues of a new pipeline.
    pub fn empty() -> Self {
        Self {
            rows: Queue::empty("sequences"),
            batches: Queue::empty("micro_batches"),
            labeled: Queue::empty("teacher_outputs"),
            saves: Queue::empty("checkpoints"),
        }
    }
}
