//! The key-value store that all processes of a run share.

use std::{
    io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{DistributedError, World, error::useful, shim::StoreHandle};

/// A key-value store in memory, which all processes of a run share: c10d's `TCPStore`, behind the prefix
/// `ddk/ATTEMPT`. Values of an earlier attempt are therefore not visible, even though torchrun's agent serves the
/// same store to all attempts.
///
/// A clone is the same store. If this process serves it ([`World::serves_store`]), it serves until the last clone and
/// the last [`Group`](crate::Group) over it are dropped.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    handle: StoreHandle,
    address: String,
}

/// A limit that clocks can add: one year.
pub(crate) const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

/// Longest pause between two polls.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

impl Store {
    /// Connects to the store, which this process serves first if it is rank 0 and no agent does. Retries until the
    /// store answers or the timeout ends, and waits for no other rank.
    ///
    /// # Errors
    /// If there is no store at the address within the timeout, or if this process must serve it and cannot.
    pub fn connect(world: &World, timeout: Duration) -> Result<Self, DistributedError> {
        let timeout = timeout.min(LONGEST_TIMEOUT);
        let address = world.address();
        let serves = world.serves_store();
        let start = Instant::now();
        if !serves {
            reach(&world.host, world.port, start + timeout).map_err(|reason| DistributedError::Store {
                operation: "connect to".to_owned(),
                address: address.clone(),
                reason: format!("{reason} (tried for {} s)", timeout.as_secs_f64()),
                advice: "check that rank 0 runs, or torchrun's agent, that MASTER_ADDR and MASTER_PORT are the same \
                         for all ranks, and that no firewall blocks the port"
                    .to_owned(),
            })?;
        }
        // The store is there, so it gets the time to answer.
        let left = timeout.saturating_sub(start.elapsed());
        let left = left.max(Duration::from_secs(1));
        let prefix = format!("ddk/{}", world.attempt);
        let handle = StoreHandle::connect(&world.host, world.port, serves, left, &prefix);
        let handle = handle.map_err(|text| DistributedError::Store {
            operation: if serves { "serve" } else { "connect to" }.to_owned(),
            address: address.clone(),
            reason: useful(&text),
            advice: if serves {
                "rank 0 must run on the machine that MASTER_ADDR names; set MASTER_PORT to a free port"
            } else {
                "check that MASTER_PORT is the port of a c10d store"
            }
            .to_owned(),
        })?;
        let inner = Arc::new(Inner { handle, address });
        Ok(Self { inner })
    }

    /// Sets the value of a key. An earlier value is replaced.
    ///
    /// # Errors
    /// If the store no longer answers, or if the key contains a NUL byte.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), DistributedError> {
        let set = self.inner.handle.set(&user_key(key), value);
        set.map_err(|text| self.failed("write to", &text))
    }

    /// Returns the value of a key, or `None` if it is not set. Does not wait.
    ///
    /// # Errors
    /// If the store no longer answers, or if the key contains a NUL byte.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, DistributedError> {
        let value = self.inner.handle.get(&user_key(key));
        value.map_err(|text| self.failed("read from", &text))
    }

    /// Waits without a limit until a key is set, and returns its value. Calls `between` at each poll, at least 20
    /// times per second, and returns `None` as soon as it returns true.
    ///
    /// # Errors
    /// If the store no longer answers, or if the key contains a NUL byte.
    pub fn wait(
        &self,
        key: &str,
        between: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<u8>>, DistributedError> {
        let mut pauses = Pauses::new();
        loop {
            if let Some(value) = self.get(key)? {
                return Ok(Some(value));
            }
            if between() {
                return Ok(None);
            }
            pauses.pause();
        }
    }

    pub(crate) fn handle(&self) -> &StoreHandle {
        &self.inner.handle
    }

    pub(crate) fn failed(&self, operation: &str, text: &str) -> DistributedError {
        DistributedError::Store {
            operation: operation.to_owned(),
            address: self.inner.address.clone(),
            reason: useful(text),
            advice: "the process that serves it (torchrun's agent, or rank 0) is probably gone: see its log"
                .to_owned(),
        }
    }
}

/// Keeps the users' keys apart from those of groups.
fn user_key(key: &str) -> String {
    format!("key/{key}")
}

/// Pauses between polls: short at first, then longer.
pub(crate) struct Pauses {
    next: Duration,
    longest: Duration,
}

impl Pauses {
    pub(crate) fn new() -> Self {
        Self::up_to(LONGEST_PAUSE)
    }

    pub(crate) fn up_to(longest: Duration) -> Self {
        let next = longest.min(Duration::from_micros(20));
        Self { next, longest }
    }

    pub(crate) fn pause(&mut self) {
        thread::sleep(self.next);
        self.next = (self.next * 2).min(self.longest);
    }
}

/// Waits until something listens at the address. c10d retries as well, but only reports that it took too long. The
/// name is resolved each time, because it may appear late.
fn reach(host: &str, port: u16, deadline: Instant) -> Result<(), io::Error> {
    let mut pauses = Pauses::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        let reached = (host, port).to_socket_addrs().and_then(|addresses| {
            let addresses: Vec<SocketAddr> = addresses.collect();
            let mut last = io::Error::other("the name has no address");
            for address in addresses {
                match TcpStream::connect_timeout(&address, left) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        match reached {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => pauses.pause(),
        }
    }
}
