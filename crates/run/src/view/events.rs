//! The last events of a run, and how many of each kind there were.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::part::{Gather, keep};
use crate::records::{EventKind, EventLine};

/// Maximum number of events to keep. Saves have their own limit, because they are routine and would push out the
/// others.
const EVENTS: usize = 200;
const SAVES: usize = 50;

/// A checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Its step.
    pub step: u64,
    /// When it was saved, seconds since 1970.
    pub time: f64,
}

/// Data gathered from `events.jsonl`.
#[derive(Debug, Default)]
pub(super) struct EventLog {
    others: VecDeque<EventLine>,
    saves: VecDeque<EventLine>,
    counts: BTreeMap<EventKind, u64>,
    pub(super) first_time: Option<f64>,
    pub(super) last_time: Option<f64>,
    /// Whether the last process recorded a failure.
    pub(super) has_failed: bool,
    /// Whether the run is paused, according to its events.
    pub(super) is_paused: bool,
}

impl Gather for EventLog {
    type Record = EventLine;

    fn add(&mut self, line: EventLine) {
        *self.counts.entry(line.kind).or_default() += 1;
        self.first_time.get_or_insert(line.time);
        self.last_time = Some(line.time);
        match line.kind {
            EventKind::Paused => self.is_paused = true,
            EventKind::Started | EventKind::Resumed | EventKind::Unpaused => self.is_paused = false,
            _ => {}
        }
        match line.kind {
            EventKind::Failed => self.has_failed = true,
            EventKind::Started | EventKind::Resumed | EventKind::Stopped => self.has_failed = false,
            _ => {}
        }
        match line.kind {
            EventKind::Saved => keep(&mut self.saves, line, SAVES),
            _ => keep(&mut self.others, line, EVENTS),
        }
    }
}

impl EventLog {
    pub(super) fn shown(&self) -> Vec<EventLine> {
        let mut events: Vec<EventLine> = self.others.iter().chain(&self.saves).cloned().collect();
        events.sort_by(|a, b| a.time.total_cmp(&b.time));
        events
    }

    pub(super) fn incidents(&self) -> BTreeMap<EventKind, u64> {
        let mut counts = self.counts.clone();
        counts.retain(|kind, _| kind.is_incident());
        counts
    }

    pub(super) fn saved(&self) -> Option<Saved> {
        let EventLine { step, time, .. } = *self.saves.back()?;
        Some(Saved { step, time })
    }
}
