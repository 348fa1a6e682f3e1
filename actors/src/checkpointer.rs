//! The checkpointer: writes snapshots beside training, one at a time.

use std::{sync::Arc, time::Instant};

use crossbeam::channel::{Receiver, Sender};
use ddk_run::{
    CheckpointStore, Journal, SnapshotFile,
    records::{EventKind, seconds_since_1970},
};
use ddk_telemetry::{Queues, Worker, metrics};

use crate::{
    Live, LoopState, Observer, PortError,
    error::with_causes,
    worker::{Body, Ready},
};

/// A checkpoint to be written.
#[derive(Debug)]
pub struct SaveRequest {
    /// The loop at the step boundary.
    pub state: LoopState,
    /// The student's files.
    pub files: Vec<SnapshotFile>,
    /// Where the result goes; whoever needs it waits there.
    pub reply: Sender<Result<(), String>>,
}

/// What the checkpointer works with. It ends when the student, the only sender, has ended.
pub struct Checkpointer {
    /// Snapshots. The channel holds none: a save in flight is the only one in memory besides the next.
    pub input: Receiver<SaveRequest>,
    /// Where they go.
    pub store: CheckpointStore,
    /// How many of the newest stay, as it is set now.
    pub live: Arc<Live>,
    /// Whose lines have to be durable before a checkpoint names their lengths.
    pub journal: Arc<Journal>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// Counts what comes in.
    pub queues: Queues,
    /// Its line on the board.
    pub status: Worker,
}

impl Checkpointer {
    /// The worker's thread.
    pub fn body(self) -> Body {
        Box::new(move |ready: Ready| {
            ready.say();
            self.status.waiting_for_input();
            let mut this = self;
            while let Ok(request) = this.input.recv() {
                this.queues.saves.received();
                this.status.computing();
                this.store.keep_last(this.live.keep());
                this.store.measured(&request.state.measured);
                this.save(request)?;
                this.status.waiting_for_input();
            }
            this.status.stopped();
            Ok(())
        })
    }

    /// A save that fails is an event: the checkpoints before it stay, and training continues. Old checkpoints
    /// that could not be removed are an event of their own: the save has succeeded.
    fn save(&self, request: SaveRequest) -> Result<(), PortError> {
        let (step, began) = (request.state.step, Instant::now());
        let sync = || self.journal.sync();
        let saved = self.store.save(step, &request.state, request.files, sync);
        let seconds = began.elapsed().as_secs_f64();
        let (kind, message) = match &saved {
            Ok(report) => {
                metrics::CHECKPOINT_SECONDS.with(&[]).record(seconds);
                metrics::CHECKPOINT_BYTES.with(&[]).set(report.bytes as f64);
                metrics::CHECKPOINT_STEP.with(&[]).set(step as f64);
                metrics::CHECKPOINT_TIME.with(&[]).set(seconds_since_1970());
                tracing::info!(step, seconds, bytes = report.bytes, "saved");
                let message = format!("{} bytes in {seconds:.2} s", report.bytes);
                (EventKind::Saved, message)
            }
            Err(error) => {
                metrics::CHECKPOINT_FAILURES.with(&[]).increment(1);
                let message = with_causes(error);
                tracing::error!(
                    step,
                    error = message,
                    "a checkpoint could not be saved; the ones before it stay"
                );
                (EventKind::SaveFailed, message)
            }
        };
        self.tell(step, kind, &message);
        if let Ok(Some(error)) = saved.as_ref().map(|report| &report.not_removed) {
            let message = with_causes(error);
            tracing::warn!(
                step,
                error = message,
                "saved, but checkpoints that need not stay could not be removed"
            );
            self.tell(step, EventKind::RetentionFailed, &message);
        }
        // Nobody asks any more where another save has taken its place.
        let _ = request
            .reply
            .send(saved.map(|_| ()).map_err(|error| with_causes(&error)));
        Ok(())
    }

    /// An event that cannot be written (the disk that is full may be its own) has been logged.
    fn tell(&self, step: u64, kind: EventKind, message: &str) {
        if let Ok(event) = self.journal.event(step, kind, message) {
            self.observer.on_event(&event);
        }
    }
}
