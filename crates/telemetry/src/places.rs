//! Places for connections: separate ones for connections with access and for strangers.
//!
//! A connection starts as a stranger: it has not shown yet that it has access. Strangers have their own places, so
//! silent ones never take places from connections with access. When the places of strangers are full, the server closes
//! the oldest stranger to admit the next. A client with the token sends it with its first bytes, long before its
//! connection is the oldest. Strangers on this machine and strangers from elsewhere have separate places too.

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
    /// Places of connections with access.
    known: Arc<Semaphore>,
    strangers: Mutex<Strangers>,
    /// Maximum number of strangers, counted separately for this machine and for all others.
    most: usize,
}

#[derive(Debug, Default)]
struct Strangers {
    next: u64,
    local: VecDeque<Stranger>,
    remote: VecDeque<Stranger>,
}

/// A stranger's number, and the signal that closes its connection.
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

    /// Gives a new connection a place as a stranger. This may close the oldest stranger.
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

    /// Closes the connections of all strangers.
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
    /// Records that the connection has access, and moves it to a place for such connections. Returns false if none
    /// becomes free in time.
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

    /// Completes when the connection has to close to make room. Never completes once the connection has access.
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
