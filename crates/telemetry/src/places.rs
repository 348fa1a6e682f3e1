//! Places for connections: those that have shown that they may ask, and those that have not yet.
//!
//! A connection begins as a stranger. Strangers have a number of places of their own, so however many of them
//! are silent, they take none from the others; where their places are full, the one that has been there
//! longest makes room for the next. A client that knows the token says so with its first bytes, long before
//! its turn to go comes. Strangers on this machine and those from elsewhere do not take each other's places
//! either.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::Limits;

/// The places of a server.
#[derive(Debug)]
pub(crate) struct Places {
    /// For connections that may ask.
    known: Arc<Semaphore>,
    strangers: Mutex<Strangers>,
    /// Of strangers, on this machine and from elsewhere each.
    most: usize,
}

#[derive(Debug, Default)]
struct Strangers {
    next: u64,
    local: VecDeque<Stranger>,
    remote: VecDeque<Stranger>,
}

/// A stranger's number, and how it is sent away.
#[derive(Debug)]
struct Stranger {
    number: u64,
    leave: Arc<Notify>,
}

impl Strangers {
    fn of(&mut self, is_local: bool) -> &mut VecDeque<Stranger> {
        if is_local {
            &mut self.local
        } else {
            &mut self.remote
        }
    }
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            known: Arc::new(Semaphore::new(limits.connections)),
            strangers: Mutex::default(),
            most: limits.strangers.max(1),
        })
    }

    /// A place for a connection that has said nothing yet; another stranger may have to go for it.
    pub(crate) fn enter(self: &Arc<Self>, peer: IpAddr) -> Arc<Place> {
        let is_local = peer.to_canonical().is_loopback();
        let leave = Arc::new(Notify::new());
        let mut strangers = self.strangers();
        let number = strangers.next;
        strangers.next += 1;
        let same = strangers.of(is_local);
        if same.len() >= self.most
            && let Some(oldest) = same.pop_front()
        {
            oldest.leave.notify_one();
        }
        same.push_back(Stranger {
            number,
            leave: Arc::clone(&leave),
        });
        Arc::new(Place {
            places: Arc::clone(self),
            number,
            is_local,
            leave,
            known: Mutex::default(),
        })
    }

    /// All strangers have to go.
    pub(crate) fn send_strangers_away(&self) {
        let mut strangers = self.strangers();
        for is_local in [true, false] {
            for stranger in strangers.of(is_local).drain(..) {
                stranger.leave.notify_one();
            }
        }
    }

    fn strangers(&self) -> MutexGuard<'_, Strangers> {
        self.strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
    is_local: bool,
    leave: Arc<Notify>,
    known: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Place {
    /// The connection may ask: it is no stranger any more. False where no such place becomes free in time.
    pub(crate) async fn is_known(&self, patience: Duration) -> bool {
        if self.permit().is_some() {
            return true;
        }
        let place = Arc::clone(&self.places.known).acquire_owned();
        let Ok(Ok(place)) = timeout(patience, place).await else {
            return false;
        };
        *self.permit() = Some(place);
        self.no_stranger();
        true
    }

    /// Ends when the connection has to make room: never once it may ask.
    pub(crate) async fn has_to_leave(&self) {
        loop {
            self.leave.notified().await;
            if self.permit().is_none() {
                return;
            }
        }
    }

    fn permit(&self) -> MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_stranger(&self) {
        let mut strangers = self.places.strangers();
        let same = strangers.of(self.is_local);
        same.retain(|stranger| stranger.number != self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.no_stranger();
    }
}
