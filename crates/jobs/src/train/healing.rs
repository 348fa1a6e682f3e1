//! What heals by going back to the last checkpoint: a student or batcher that panicked, numbers that went
//! wrong, a device without memory.
//!
//! The whole pipeline is built again from the checkpoint, so nothing of the old one is left. What has to
//! outlast the process (steps to pass over, smaller sizes) is in `healing.json`, written before the run goes
//! on.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Context, Result};
use ddk_actors::{Exit, PortError, RestartBudget, RunError, RunPlan, WorkerId};
use ddk_run::{Journal, RunFolder, read::record, records::EventKind};
use ddk_telemetry::metrics;
use serde::{Deserialize, Serialize};

use crate::progress::say;

/// No chunk of positions is made smaller.
const SMALLEST_CHUNK: i64 = 64;

/// What a run has learnt about itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Learnt {
    /// Steps whose data is passed over.
    pub(super) skip: BTreeSet<u64>,
    /// How often the last checkpoint was restored because numbers went wrong.
    rollbacks: u64,
    /// Positions of a chunk, where the set number did not fit.
    pub(super) chunk: Option<i64>,
    /// Rows of a micro-batch, where the set number did not fit.
    pub(super) micro_rows: Option<u64>,
}

pub(super) struct Healing {
    file: PathBuf,
    max_rollbacks: u64,
    pub(super) learnt: Learnt,
    rewinds: RestartBudget,
}

impl Healing {
    pub(super) fn open(folder: &RunFolder, max_rollbacks: u64) -> Result<Self> {
        let file = folder.path().join("healing.json");
        let learnt = if file.exists() {
            record(&file)?
        } else {
            Learnt::default()
        };
        Ok(Self {
            file,
            max_rollbacks,
            learnt,
            rewinds: RestartBudget::default(),
        })
    }

    /// Whether the run may go on from its last checkpoint after this error; writes down what is different then.
    pub(super) fn heals(
        &mut self,
        error: &RunError,
        plan: &RunPlan,
        chunk: i64,
        journal: &Journal,
    ) -> Result<bool> {
        let RunError::Worker { worker, cause } = error else {
            return Ok(false);
        };
        let (kind, reason, message) = match cause {
            // Weights that may be half updated; rows in hand that nobody else has. Both share one budget.
            Exit::Panicked(text)
                if matches!(worker, WorkerId::Student | WorkerId::Batcher)
                    && self.rewinds.allow(&WorkerId::Student).is_some() =>
            {
                let restarts = metrics::WORKER_RESTARTS.with(&[&worker.to_string()]);
                restarts.increment(1);
                let message = format!("the {worker} panicked: {text}");
                (EventKind::Rewound, "panic", message)
            }
            Exit::Failed(PortError::RollBack {
                first,
                last,
                reason,
            }) if self.learnt.rollbacks < self.max_rollbacks => {
                self.learnt.rollbacks += 1;
                self.learnt.skip.extend(*first..=*last);
                (
                    EventKind::RolledBack,
                    "numbers",
                    format!("steps {first} to {last} are passed over: {reason}"),
                )
            }
            Exit::Failed(PortError::OutOfMemory(text)) => match self.shrink(plan.micro_rows, chunk)
            {
                Some(what) => (
                    EventKind::Shrunk,
                    "memory",
                    format!("{worker} ran out of memory ({text}): {what}"),
                ),
                None => return Ok(false),
            },
            _ => return Ok(false),
        };
        ddk_files::write_atomically(&self.file, &serde_json::to_vec_pretty(&self.learnt)?)
            .map_err(ddk_run::RunFileError::from)
            .and_then(|()| journal.event_now(kind, &message))
            .with_context(|| message.clone())?;
        metrics::RESTORATIONS.with(&[reason]).increment(1);
        tracing::warn!(%kind, message, "resuming from the last checkpoint");
        say(&format!(
            "warning: {message}; resuming from the last checkpoint"
        ));
        Ok(true)
    }

    /// Half the chunk, or half the micro-batch; `None` where nothing can be made smaller.
    fn shrink(&mut self, micro_rows: u64, chunk: i64) -> Option<String> {
        if chunk >= 2 * SMALLEST_CHUNK {
            self.learnt.chunk = Some(chunk / 2);
            return Some(format!(
                "the head takes {} positions at a time now",
                chunk / 2
            ));
        }
        if micro_rows > 1 {
            let rows = if micro_rows.is_multiple_of(2) {
                micro_rows / 2
            } else {
                1
            };
            self.learnt.micro_rows = Some(rows);
            return Some(format!("a micro-batch has {rows} rows now"));
        }
        None
    }
}
