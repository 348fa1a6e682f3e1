//! Commands that the student has received and not yet carried out.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Instant,
};

use ddk_run::{
    Source,
    control::{self, Command},
    records::StopReason,
};
use ractor::RpcReplyPort;

use crate::{
    End,
    agreement::Heard,
    channel::MeteredReceiver,
    messages::{Request, StudentCommand},
};

/// Commands to the student. It receives them whenever it waits and between two batches of an evaluation, and carries
/// them out between two steps.
///
/// If there are several ranks, they first tell each other what they have heard. A stop and users' commands count only
/// from then on, so that all ranks obey them at the same point.
pub struct Told {
    /// The channel that they arrive on.
    pub commands: MeteredReceiver<StudentCommand>,
    /// Whether there are several ranks.
    together: bool,
    /// When this process was told to save and end, if it was.
    heard_stop: Cell<Option<Instant>>,
    /// When the run was told to save and end, if it was.
    pub(super) stop: Cell<Option<Instant>>,
    /// Whether another worker of this process has failed.
    pub(super) abandon: Cell<bool>,
    /// When the current pause began, if any.
    pub(super) paused: Cell<Option<Instant>>,
    finish: Cell<Option<(StopReason, u64)>>,
    /// Requests that the other ranks do not know yet.
    heard: RefCell<VecDeque<Request>>,
    /// Requests to carry out.
    due: RefCell<VecDeque<Due>>,
}

/// A request to carry out.
pub struct Due {
    pub(super) command: Command,
    pub(super) source: Source,
    /// Where to send the answer; only on the rank that received the request.
    pub(super) reply: Option<RpcReplyPort<control::Outcome>>,
}

impl Told {
    /// No commands yet. `together`: whether there are several ranks.
    pub fn new(commands: MeteredReceiver<StudentCommand>, together: bool) -> Self {
        Self {
            commands,
            together,
            heard_stop: Cell::new(None),
            stop: Cell::new(None),
            abandon: Cell::new(false),
            paused: Cell::new(None),
            finish: Cell::new(None),
            heard: RefCell::default(),
            due: RefCell::default(),
        }
    }

    /// Records a command.
    pub(super) fn hear(&self, command: StudentCommand) {
        match command {
            StudentCommand::Stop => {
                let heard = self.heard_stop.get().or(Some(Instant::now()));
                self.heard_stop.set(heard);
                if !self.together {
                    self.stop.set(heard);
                }
            }
            StudentCommand::Abandon => self.abandon.set(true),
            StudentCommand::Finish(reason, after) => self.finish.set(Some((reason, after))),
            // It only wakes a student that waits.
            StudentCommand::TeacherEvaluated => {}
            StudentCommand::Request(request) if self.together => {
                self.heard.borrow_mut().push_back(request);
            }
            StudentCommand::Request(request) => self.due.borrow_mut().push_back(Due {
                command: request.command,
                source: request.source,
                reply: Some(request.reply),
            }),
        }
    }

    /// Records all commands that have arrived.
    pub(super) fn hear_all(&self) {
        let arrived = self.commands.end.try_iter();
        arrived.for_each(|command| self.hear(command));
    }

    /// What the other ranks do not know yet, for a message to them.
    pub(super) fn to_tell(&self) -> Heard {
        let heard = self.heard.borrow();
        let commands = heard.iter();
        Heard {
            stop: self.heard_stop.get().is_some(),
            commands: commands
                .map(|request| (request.command.clone(), request.source))
                .collect(),
        }
    }

    /// Whether there is something that the other ranks do not know yet.
    pub(super) fn has_news(&self) -> bool {
        self.heard_stop.get().is_some() || !self.heard.borrow().is_empty()
    }

    /// Records what all ranks together have heard. From now on, it counts.
    pub(super) fn agree(&self, heard: Heard) {
        if heard.stop {
            self.agree_to_stop();
        }
        // In the order of the commands in this rank's message. On the other ranks, there are none.
        let mut own = self.heard.borrow_mut().split_off(0);
        let due = heard.commands.into_iter().map(|(command, source)| Due {
            command,
            source,
            reply: own.pop_front().map(|request| request.reply),
        });
        self.due.borrow_mut().extend(due);
    }

    /// From now on, the run is told to stop. All ranks call this at the same point.
    pub(super) fn agree_to_stop(&self) {
        let heard = self.heard_stop.get().or(Some(Instant::now()));
        self.stop.set(self.stop.get().or(heard));
    }

    /// When this process was told to stop, whether or not the other ranks know it yet.
    pub(super) fn stopped_since(&self) -> Option<Instant> {
        self.heard_stop.get().or(self.stop.get())
    }

    /// Whether a command that was heard here cuts an evaluation off. The ranks agree on that in the evaluation.
    pub(super) fn is_cut_off(&self) -> bool {
        self.stopped_since().is_some() || self.abandon.get()
    }

    /// Whether the run ends, or this process.
    pub(super) fn is_to_end(&self) -> bool {
        self.stop.get().is_some() || self.abandon.get()
    }

    /// The next request to carry out, if any. After another worker has failed, none is carried out.
    pub(super) fn next_due(&self) -> Option<Due> {
        let due = self.due.borrow_mut().pop_front();
        due.filter(|_| !self.abandon.get())
    }

    /// How the run ends, if it is finished after `step`.
    pub(super) fn finished(&self, step: u64) -> Option<End> {
        let (reason, _) = self.finish.get().filter(|(_, after)| step >= *after)?;
        Some(End::Finished(reason))
    }
}
