//! Channels between workers. Each end knows its worker's line on the board, its queue's meter and the stop channel, so
//! a worker's loop only sends and receives.

use std::{convert::Infallible, time::Instant};

use crossbeam::channel::{Receiver, Sender, bounded, never, select_biased};
use ddk_telemetry::{Queue, ShownQueue, Worker};

use crate::worker::{Context, Exit, WorkerId};

/// An end of a channel. The board shows its worker as waiting during a call, and as computing after it.
#[derive(Clone)]
pub struct Metered<End> {
    pub(crate) end: End,
    meter: Option<Queue>,
    line: Worker,
    stop: Receiver<Infallible>,
}

/// The sending end.
pub type MeteredSender<Item> = Metered<Sender<Item>>;
/// The receiving end.
pub type MeteredReceiver<Item> = Metered<Receiver<Item>>;

/// What arrived first: an item of the channel, or a message (`Word`) of another one.
pub enum Received<Item, Word> {
    /// An item.
    Item(Item),
    /// A message of the other channel.
    Word(Word),
}

impl Context {
    /// A channel between two workers that holds at most `capacity` items.
    pub fn channel<Item>(
        &self,
        capacity: usize,
        meter: &Queue,
        from: &WorkerId,
        to: &WorkerId,
    ) -> (MeteredSender<Item>, MeteredReceiver<Item>) {
        let (sender, receiver) = bounded(capacity);
        (
            self.end(sender, Some(meter), from),
            self.end(receiver, Some(meter), to),
        )
    }

    /// Shows a queue on the board, with the length of its receiving end.
    pub fn show<Item: Send + 'static>(
        &self,
        name: String,
        capacity: usize,
        queue: &MeteredReceiver<Item>,
    ) -> ShownQueue {
        let end = queue.end.clone();
        self.board.queue(name, capacity, move || end.len())
    }

    /// Wraps the end of a channel that belongs to `worker`.
    pub fn end<End>(&self, end: End, meter: Option<&Queue>, worker: &WorkerId) -> Metered<End> {
        Metered {
            end,
            meter: meter.cloned(),
            line: self.line(worker),
            stop: self.stop.clone(),
        }
    }
}

impl<Item> MeteredSender<Item> {
    /// Sends an item as soon as there is room.
    ///
    /// # Errors
    /// [`Exit::Done`] if the run ends first.
    pub fn send(&self, item: Item) -> Result<(), Exit> {
        match self.send_or(item, &never::<Infallible>())? {
            None => Ok(()),
        }
    }

    /// Sends an item, or returns it with a message of `words` that arrives before there is room.
    ///
    /// # Errors
    /// [`Exit::Done`] if the run ends first.
    pub fn send_or<Word>(
        &self,
        item: Item,
        words: &Receiver<Word>,
    ) -> Result<Option<(Item, Word)>, Exit> {
        self.line.waiting_for_output();
        let returned = select_biased! {
            recv(self.stop) -> _ => return Err(Exit::Done),
            recv(words) -> word => Some((item, word?)),
            send(self.end, item) -> sent => {
                sent?;
                self.meter.iter().for_each(Queue::sent);
                None
            }
        };
        self.line.computing();
        Ok(returned)
    }
}

impl<Item> MeteredReceiver<Item> {
    /// Waits for the next item.
    ///
    /// # Errors
    /// [`Exit::Done`] if the run ends first.
    pub fn recv(&self) -> Result<Item, Exit> {
        match self.recv_or(&never::<Infallible>())? {
            Received::Item(item) => Ok(item),
        }
    }

    /// Waits for the next item or for a message of `words`. A message takes precedence.
    ///
    /// # Errors
    /// [`Exit::Done`] if the run ends first.
    pub fn recv_or<Word>(&self, words: &Receiver<Word>) -> Result<Received<Item, Word>, Exit> {
        let received = self.recv_or_until(words, &never())?;
        received.ok_or(Exit::Done)
    }

    /// Works like [`Self::recv_or`], but returns `None` once `deadline` has a message.
    ///
    /// # Errors
    /// [`Exit::Done`] if the run ends first.
    pub fn recv_or_until<Word>(
        &self,
        words: &Receiver<Word>,
        deadline: &Receiver<Instant>,
    ) -> Result<Option<Received<Item, Word>>, Exit> {
        self.line.waiting_for_input();
        let received = select_biased! {
            recv(self.stop) -> _ => return Err(Exit::Done),
            recv(words) -> word => Some(Received::Word(word?)),
            recv(self.end) -> item => {
                let item = item?;
                self.meter.iter().for_each(Queue::received);
                Some(Received::Item(item))
            }
            recv(deadline) -> _ => None,
        };
        self.line.computing();
        Ok(received)
    }
}
