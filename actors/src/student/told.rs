//! Commands that the student has received and not yet carried out.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Instant,
};

use ddk_run::records::StopReason;

use crate::{
    End,
    channel::MeteredReceiver,
    messages::{Request, StudentCommand},
};

/// Commands to the student. It receives them whenever it waits and between two batches of an evaluation, and carries
/// them out between two steps.
pub struct Told {
    /// The channel that they arrive on.
    pub commands: MeteredReceiver<StudentCommand>,
    /// When the student was told to save and end, if it was.
    pub(super) stop: Cell<Option<Instant>>,
    /// Whether another worker has failed.
    pub(super) abandon: Cell<bool>,
    /// When the current pause began, if any.
    pub(super) paused: Cell<Option<Instant>>,
    finish: Cell<Option<(StopReason, u64)>>,
    requests: RefCell<VecDeque<Request>>,
}

impl Told {
    /// No commands yet.
    pub fn new(commands: MeteredReceiver<StudentCommand>) -> Self {
        Self {
            commands,
            stop: Cell::new(None),
            abandon: Cell::new(false),
            paused: Cell::new(None),
            finish: Cell::new(None),
            requests: RefCell::default(),
        }
    }

    /// Records a command.
    pub(super) fn hear(&self, command: StudentCommand) {
        match command {
            StudentCommand::Stop => self.stop.set(self.stop.get().or(Some(Instant::now()))),
            StudentCommand::Abandon => self.abandon.set(true),
            StudentCommand::Finish(reason, after) => self.finish.set(Some((reason, after))),
            StudentCommand::Request(request) => self.requests.borrow_mut().push_back(request),
        }
    }

    /// Records all commands that have arrived.
    pub(super) fn hear_all(&self) {
        let arrived = self.commands.end.try_iter();
        arrived.for_each(|command| self.hear(command));
    }

    /// Whether a recorded command cuts the current work off.
    pub(super) fn is_cut_off(&self) -> bool {
        self.stop.get().is_some() || self.abandon.get()
    }

    /// The next request, if any. After another worker has failed, none is carried out.
    pub(super) fn request(&self) -> Option<Request> {
        let request = self.requests.borrow_mut().pop_front();
        request.filter(|_| !self.abandon.get())
    }

    /// How the run ends, if it is finished after `step`.
    pub(super) fn finished(&self, step: u64) -> Option<End> {
        let (reason, _) = self.finish.get().filter(|(_, after)| step >= *after)?;
        Some(End::Finished(reason))
    }
}
