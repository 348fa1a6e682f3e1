//! The checkpointer: writes snapshots while training continues, one at a time.

use std::time::Instant;

use crossbeam::channel::Sender;
use ddk_run::{
    CheckpointStore, SnapshotFile,
    control::{Outcome, Refusal, Reply},
    records::{EventKind, seconds_since_1970},
};
use ddk_telemetry::metrics;
use ractor::RpcReplyPort;

use crate::{
    LoopState,
    channel::MeteredReceiver,
    error::with_causes,
    worker::{Context, Exit, Ready},
};

/// A checkpoint to write.
pub struct SaveRequest {
    /// The state of the loop at the step boundary.
    pub state: LoopState,
    /// The student's files.
    pub files: Vec<SnapshotFile>,
    /// Receives the result, for a student that waits for it.
    pub reply: Sender<Result<(), String>>,
    /// Receives the outcome, if a user asked for this checkpoint.
    pub asked: Option<RpcReplyPort<Outcome>>,
}

/// What the checkpointer works with. It ends after the student, its only sender, has ended.
pub struct Checkpointer {
    /// Snapshots. The channel has no buffer, so memory holds at most two: the one being saved and the next.
    pub input: MeteredReceiver<SaveRequest>,
    /// Where checkpoints go.
    pub store: CheckpointStore,
    /// What the workers share. The journal has to be durable before a checkpoint records the lengths of its files.
    pub context: Context,
}

impl Checkpointer {
    /// Runs the worker's thread: writes each requested checkpoint until the student has ended.
    ///
    /// # Errors
    /// None: a checkpoint that cannot be written is recorded as an event, and the worker continues.
    pub fn work(mut self, ready: Ready) -> Result<(), Exit> {
        ready.say();
        while let Ok(request) = self.input.recv() {
            let live = &self.context.plan.live;
            self.store.retention.last = live.get(|settings| settings.checkpoint.keep_latest);
            self.store.measured.clone_from(&request.state.measured);
            self.save(request);
        }
        Ok(())
    }

    /// Saves a checkpoint. A save that fails is an event: earlier checkpoints stay, and training continues. If old
    /// checkpoints cannot be removed, that is a separate event, because the save itself succeeded.
    fn save(&self, request: SaveRequest) {
        let (step, began) = (request.state.step, Instant::now());
        let sync = || self.context.journal.sync();
        let saved = self.store.save(step, &request.state, request.files, sync);
        let saved = saved.map_err(|error| with_causes(&error));
        let seconds = began.elapsed().as_secs_f64();
        // If the event cannot be written, perhaps because its disk is full too, the log still has the result.
        let event = |kind, message: &str| drop(self.context.event(step, kind, message));
        match &saved {
            Ok(report) => {
                metrics::CHECKPOINT_SECONDS.with(&[]).record(seconds);
                metrics::CHECKPOINT_BYTES.with(&[]).set(report.bytes as f64);
                metrics::CHECKPOINT_STEP.with(&[]).set(step as f64);
                metrics::CHECKPOINT_TIME.with(&[]).set(seconds_since_1970());
                tracing::info!(step, seconds, bytes = report.bytes, "saved");
                let message = format!("{} bytes in {seconds:.2} s", report.bytes);
                event(EventKind::Saved, &message);
                if let Some(error) = &report.not_removed {
                    let message = with_causes(error);
                    tracing::warn!(
                        step,
                        error = message,
                        "saved, but cannot remove old checkpoints"
                    );
                    event(EventKind::RetentionFailed, &message);
                }
            }
            Err(message) => {
                metrics::CHECKPOINT_FAILURES.with(&[]).increment(1);
                tracing::error!(
                    step,
                    error = message,
                    "cannot save a checkpoint; the earlier ones are kept"
                );
                event(EventKind::SaveFailed, message);
            }
        }
        if let Some(asked) = request.asked {
            let outcome = saved.as_ref().map(|report| Reply::Checkpoint {
                step,
                bytes: report.bytes,
                seconds,
            });
            let refusal = |error| Refusal(format!("cannot save step {step}: {error}"));
            // The caller may be gone.
            let _ = asked.send(outcome.map_err(refusal));
        }
        // The receiver is gone if a later save has replaced it.
        let _ = request.reply.send(saved.map(drop));
    }
}
