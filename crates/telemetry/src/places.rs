//! Places for connections: separate ones for connections with access and for strangers.
//!
//! A connection starts as a stranger: it has not shown yet that it has access. Strangers have their own places, so
//! silent ones never take places from connections with access. When the places of strangers are full, the server closes
//! the oldest stranger to admit the next. A client with the token sends it with its first bytes, long before its
//! connection is the oldest. Strangers on this machine and strangers from elsewhere have separate places too.

use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
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
    /// The signals that close the connections of strangers from elsewhere, and of those on this machine.
    strangers: Mutex<[VecDeque<Arc<Notify>>; 2]>,
    /// Maximum number of strangers, counted separately for this machine and for all others.
    most: usize,
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
        let leave = Arc::new(Notify::new());
        let mut strangers = self.strangers.lock();
        let same = &mut strangers[usize::from(peer.to_canonical().is_loopback())];
        if same.len() >= self.most
            && let Some(oldest) = same.pop_front()
        {
            oldest.notify_one();
        }
        same.push_back(Arc::clone(&leave));
        Arc::new(Place {
            places: Arc::clone(self),
            leave,
            known: Mutex::default(),
        })
    }

    /// Closes the connections of all strangers.
    pub(crate) fn send_strangers_away(&self) {
        let mut strangers = self.strangers.lock();
        let all = strangers.iter_mut().flat_map(|same| same.drain(..));
        all.for_each(|leave| leave.notify_one());
    }
}

/// The place of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    leave: Arc<Notify>,
    known: Mutex<Option<OwnedSemaphorePermit>>,
}

impl Place {
    /// Records that the connection has access, and moves it to a place for such connections. Returns false if none
    /// becomes free in time.
    pub(crate) async fn is_known(&self, patience: Duration) -> bool {
        if self.known.lock().is_some() {
            return true;
        }
        let place = Arc::clone(&self.places.known).acquire_owned();
        let Ok(Ok(place)) = timeout(patience, place).await else {
            return false;
        };
        *self.known.lock() = Some(place);
        self.no_stranger();
        true
    }

    /// Completes when the connection has to close to make room. Never completes once the connection has access.
    pub(crate) async fn has_to_leave(&self) {
        loop {
            self.leave.notified().await;
            if self.known.lock().is_none() {
                return;
            }
        }
    }

    fn no_stranger(&self) {
        for same in self.places.strangers.lock().iter_mut() {
            same.retain(|stranger| !Arc::ptr_eq(stranger, &self.leave));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.no_stranger();
    }
}
