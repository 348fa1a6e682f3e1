//! What the student has been told and has still to do.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Instant,
};

use crossbeam::channel::Receiver;
use ddk_run::records::StopReason;

use crate::{
    End,
    messages::{Request, StudentCommand},
};

/// Commands, heard whenever the student waits and between two batches of an evaluation, and obeyed between two steps.
#[derive(Debug)]
pub struct Told {
    /// Where they come from.
    pub commands: Receiver<StudentCommand>,
    /// Whether to save and end.
    pub(super) stop: Cell<bool>,
    /// Whether another part has failed.
    pub(super) abandon: Cell<bool>,
    /// Since when the run is paused.
    pub(super) paused: Cell<Option<Instant>>,
    finish: Cell<Option<(StopReason, u64)>>,
    requests: RefCell<VecDeque<Request>>,
}

impl Told {
    /// Nothing yet.
    pub fn new(commands: Receiver<StudentCommand>) -> Self {
        Self {
            commands,
            stop: Cell::new(false),
            abandon: Cell::new(false),
            paused: Cell::new(None),
            finish: Cell::new(None),
            requests: RefCell::default(),
        }
    }

    /// Remembers a command.
    pub(super) fn hear(&self, command: StudentCommand) {
        match command {
            StudentCommand::Stop => self.stop.set(true),
            StudentCommand::Abandon => self.abandon.set(true),
            StudentCommand::Finish(reason, after) => self.finish.set(Some((reason, after))),
            StudentCommand::Request(request) => self.requests.borrow_mut().push_back(request),
        }
    }

    /// Remembers all commands that have come.
    pub(super) fn hear_all(&self) {
        self.commands
            .try_iter()
            .for_each(|command| self.hear(command));
    }

    /// Whether work is to be cut off: by what has been heard.
    pub(super) fn is_cut_off(&self) -> bool {
        self.stop.get() || self.abandon.get()
    }

    /// The next request.
    pub(super) fn request(&self) -> Option<Request> {
        self.requests.borrow_mut().pop_front()
    }

    /// Whether the run is done after `step`.
    pub(super) fn finished(&self, step: u64) -> Option<End> {
        let (reason, _) = self.finish.get().filter(|(_, after)| step >= *after)?;
        Some(End::Finished(reason))
    }
}
