//! How the ranks of a group find each other in the store.

use std::time::{Duration, Instant};

use crate::{
    DistributedError, Store, World,
    address::{Route, from_environment, listens_at},
    shim::{Binding, StoreHandle},
    store::Pauses,
};

/// The place in the store where the ranks of a group meet.
pub(crate) struct Meeting {
    /// A connection of its own: two groups that connect at the same time must not wait for each other.
    store: StoreHandle,
    rank: usize,
    size: usize,
}

/// Why the ranks do not meet.
pub(crate) enum Missing {
    /// Says which ranks have not come.
    Ranks(String),
    /// What the store reported.
    Store(String),
}

impl Meeting {
    /// Leaves this rank's route where the others find it.
    pub(crate) fn enter(
        store: &Store,
        world: &World,
        name: &str,
        timeout: Duration,
    ) -> Result<Self, DistributedError> {
        let route = Route::to(&world.host, world.port);
        let route = route.map_err(|error| DistributedError::Store {
            operation: "find a route to".to_owned(),
            address: world.address(),
            reason: error.to_string(),
            advice: "check MASTER_ADDR".to_owned(),
        })?;
        let write = |text: String| store.failed("write to", &text);
        // Gloo's keys of an earlier group of this name would lead to closed ports.
        let uses = format!("group/{name}/uses/{}", world.rank);
        let number = store.handle().add(&uses, 1).map_err(write)?;
        let place = format!("group/{name}/{number}");
        let branch = store.handle().branch(timeout, &place);
        let branch = branch.map_err(|text| store.failed("connect to", &text))?;
        branch
            .set(&key(world.rank), route.to_text().as_bytes())
            .map_err(write)?;
        Ok(Self {
            store: branch,
            rank: world.rank,
            size: world.size,
        })
    }

    /// The part of the store that belongs to the group.
    pub(crate) fn store(&self) -> &StoreHandle {
        &self.store
    }

    /// Waits until all ranks have come. Returns where this rank listens.
    pub(crate) fn binding(&self, deadline: Instant) -> Result<Binding, Missing> {
        let routes = self.routes(deadline)?;
        if let Some(binding) = from_environment() {
            return Ok(binding);
        }
        let address = listens_at(self.rank, &routes);
        let address = address.ok_or_else(|| Missing::Store("it has no route".to_owned()))?;
        Ok(Binding::Address(address.to_string()))
    }

    fn routes(&self, deadline: Instant) -> Result<Vec<Route>, Missing> {
        let mut routes = vec![None; self.size];
        let mut pauses = Pauses::new();
        loop {
            for (rank, route) in routes.iter_mut().enumerate() {
                if route.is_none() {
                    *route = self.route(rank)?;
                }
            }
            let missing = routes.iter().enumerate();
            let missing = missing.filter(|(_, route)| route.is_none());
            let missing: Vec<String> = missing.map(|(rank, _)| rank.to_string()).collect();
            if missing.is_empty() {
                return Ok(routes.into_iter().flatten().collect());
            }
            if Instant::now() >= deadline {
                let ranks = if missing.len() == 1 { "rank" } else { "ranks" };
                let missing = missing.join(", ");
                return Err(Missing::Ranks(format!("{ranks} {missing} did not come")));
            }
            pauses.pause();
        }
    }

    /// The route of a rank, if it has come.
    fn route(&self, rank: usize) -> Result<Option<Route>, Missing> {
        let Some(text) = self.store.get(&key(rank)).map_err(Missing::Store)? else {
            return Ok(None);
        };
        Route::parse(&text).map(Some).ok_or_else(|| {
            let text = String::from_utf8_lossy(&text);
            Missing::Store(format!("\"{text}\" is not the route of rank {rank}"))
        })
    }
}

fn key(rank: usize) -> String {
    format!("route/{rank}")
}
