//! The place of this process in a run, from the environment that torchrun sets.

use std::{env, str::FromStr};

use crate::DistributedError;

/// Place of this process among those that torchrun, or anything that sets its environment, started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Number of this process, from 0 (`RANK`).
    pub rank: usize,
    /// Number of processes (`WORLD_SIZE`).
    pub size: usize,
    /// Number of this process on its node, from 0 (`LOCAL_RANK`). Default: `rank`.
    pub local_rank: usize,
    /// Number of processes on this node (`LOCAL_WORLD_SIZE`). Default: `size`, which means one node.
    pub local_size: usize,
    /// Name or address of the machine that serves the store (`MASTER_ADDR`).
    pub host: String,
    /// Port of the store (`MASTER_PORT`).
    pub port: u16,
    /// torchrun's restart number (`TORCHELASTIC_RESTART_COUNT`). Always `0` with several nodes: each node counts its
    /// own restarts, and each start has a new store.
    pub attempt: String,
    /// Whether torchrun's agent serves the store (`TORCHELASTIC_USE_AGENT_STORE`). Otherwise, rank 0 does.
    pub agent_serves_store: bool,
}

impl World {
    /// Reads the environment. Returns `None` if it has neither `RANK` nor `WORLD_SIZE`: this process runs alone.
    ///
    /// # Errors
    /// If only one of them is set, if another required variable is missing, or if a value makes no sense. The error
    /// names the variable, its value, and what was expected.
    pub fn from_env() -> Result<Option<Self>, DistributedError> {
        Self::from_lookup(|name| {
            env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    /// Works like [`World::from_env`], with the variables from a function.
    ///
    /// # Errors
    /// See [`World::from_env`].
    pub fn from_lookup(
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, DistributedError> {
        let variables = Variables { lookup };
        if variables.get("RANK").is_none() && variables.get("WORLD_SIZE").is_none() {
            return Ok(None);
        }
        let size = variables.required(
            "WORLD_SIZE",
            "the number of processes, at least 1",
            |size| *size >= 1,
        )?;
        let below = |what: &str, size: usize| format!("{what}: a number from 0 to {}", size - 1);
        let rank = variables.required("RANK", below("this process's number", size), |rank| {
            *rank < size
        })?;
        let local_size = variables.optional(
            "LOCAL_WORLD_SIZE",
            format!("the number of processes on this node: from 1 to WORLD_SIZE ({size})"),
            |local| (1..=size).contains(local),
        )?;
        let local_size = local_size.unwrap_or(size);
        let local_rank = variables.optional(
            "LOCAL_RANK",
            below("this process's number on its node", local_size),
            |rank| *rank < local_size,
        )?;
        let local_rank = match local_rank {
            Some(local_rank) => local_rank,
            None if rank < local_size => rank,
            None => {
                let expected = below("this process's number on its node", local_size);
                return Err(variables.error("LOCAL_RANK", expected));
            }
        };
        let is_host = |host: &String| !host.is_empty();
        let host = "the name or address of rank 0's machine";
        let host = variables.required("MASTER_ADDR", host, is_host)?;
        let port = "a TCP port from 1 to 65535";
        let port = variables.required("MASTER_PORT", port, |port| *port != 0)?;
        let agent = variables.get("TORCHELASTIC_USE_AGENT_STORE");
        let agent_serves_store = agent.is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let restarts = variables.get("TORCHELASTIC_MAX_RESTARTS");
        let attempt = if size == local_size {
            variables.get("TORCHELASTIC_RESTART_COUNT")
        } else if agent_serves_store && restarts.is_some_and(|most| most != "0") {
            let expected = "1, because torchrun otherwise keeps the keys of an earlier start on several nodes \
                            (use --rdzv-backend c10d, or set --max-restarts 0)";
            return Err(variables.error("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", expected));
        } else {
            None
        };
        Ok(Some(Self {
            rank,
            size,
            local_rank,
            local_size,
            host,
            port,
            attempt: attempt.unwrap_or_else(|| "0".to_owned()),
            agent_serves_store,
        }))
    }

    /// Whether this process serves the store.
    pub fn serves_store(&self) -> bool {
        self.rank == 0 && !self.agent_serves_store
    }

    /// Host and port of the store.
    pub(crate) fn address(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

struct Variables<F> {
    lookup: F,
}

impl<F: Fn(&str) -> Option<String>> Variables<F> {
    fn get(&self, name: &str) -> Option<String> {
        (self.lookup)(name)
    }

    fn error(&self, variable: &'static str, expected: impl Into<String>) -> DistributedError {
        DistributedError::Environment {
            variable,
            value: self.get(variable),
            expected: expected.into(),
        }
    }

    fn optional<T: FromStr>(
        &self,
        variable: &'static str,
        expected: impl Into<String>,
        is_valid: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, DistributedError> {
        let Some(text) = self.get(variable) else {
            return Ok(None);
        };
        let value = text.trim().parse().ok().filter(is_valid);
        let value = value.ok_or_else(|| self.error(variable, expected))?;
        Ok(Some(value))
    }

    fn required<T: FromStr>(
        &self,
        variable: &'static str,
        expected: impl Into<String>,
        is_valid: impl Fn(&T) -> bool,
    ) -> Result<T, DistributedError> {
        let expected = expected.into();
        let value = self.optional(variable, expected.clone(), is_valid)?;
        value.ok_or_else(|| self.error(variable, expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(variables: &[(&str, &str)]) -> Result<Option<World>, DistributedError> {
        World::from_lookup(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const PLAIN: [(&str, &str); 4] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("MASTER_ADDR", "node-0"),
        ("MASTER_PORT", "29500"),
    ];

    #[test]
    fn without_the_variables_the_process_is_alone() {
        assert_eq!(world(&[]).unwrap(), None);
        // What a shell may have set for other reasons.
        assert_eq!(world(&PLAIN[2..]).unwrap(), None);
    }

    #[test]
    fn four_variables_are_enough() {
        let found = world(&PLAIN).unwrap().unwrap();
        let expected = World {
            rank: 1,
            size: 4,
            local_rank: 1,
            local_size: 4,
            host: "node-0".to_owned(),
            port: 29500,
            attempt: "0".to_owned(),
            agent_serves_store: false,
        };
        assert_eq!(found, expected);
        assert!(!found.serves_store());
        assert_eq!(found.address(), "node-0:29500");
    }

    #[test]
    fn torchrun_sets_more() {
        let more = [
            ("RANK", "0"),
            ("LOCAL_RANK", "0"),
            ("LOCAL_WORLD_SIZE", "4"),
            ("MASTER_ADDR", "fd00::2"),
            ("TORCHELASTIC_RESTART_COUNT", "3"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ];
        let found = world(&[&more, &PLAIN[1..]].concat()).unwrap().unwrap();
        assert_eq!((found.local_rank, found.local_size), (0, 4));
        assert_eq!(found.attempt, "3");
        assert!(found.agent_serves_store);
        assert!(!found.serves_store());
        assert_eq!(found.address(), "[fd00::2]:29500");
    }

    /// Each node counts its own restarts, so the count must not tell the starts apart.
    #[test]
    fn several_nodes_need_a_new_store_at_each_start() {
        let more = [
            ("LOCAL_WORLD_SIZE", "2"),
            ("TORCHELASTIC_RESTART_COUNT", "3"),
            ("TORCHELASTIC_MAX_RESTARTS", "5"),
        ];
        let with = |served: &'static str| {
            let served = [("TORCHELASTIC_USE_AGENT_STORE", served)];
            world(&[&more[..], &served, &PLAIN].concat())
        };
        assert_eq!(with("False").unwrap().unwrap().attempt, "0");
        let message = with("True").unwrap_err().to_string();
        let expected = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE is not set, expected 1, because";
        assert!(message.starts_with(expected), "{message}");
    }

    /// Replaces or adds one variable, and returns the message.
    fn message(name: &str, value: Option<&str>) -> String {
        let others = PLAIN.into_iter().filter(|(other, _)| *other != name);
        let all: Vec<_> = others.chain(value.map(|value| (name, value))).collect();
        world(&all).unwrap_err().to_string()
    }

    #[test]
    fn errors_name_the_variable_its_value_and_what_was_expected() {
        for (name, value, expected) in [
            (
                "RANK",
                None,
                "RANK is not set, expected this process's number: a number from 0 to 3",
            ),
            (
                "RANK",
                Some("4"),
                "RANK is \"4\", expected this process's number: a number from 0 to 3",
            ),
            ("RANK", Some("one"), "RANK is \"one\", expected"),
            ("RANK", Some("-1"), "RANK is \"-1\", expected"),
            (
                "WORLD_SIZE",
                None,
                "WORLD_SIZE is not set, expected the number of processes, at least 1",
            ),
            (
                "WORLD_SIZE",
                Some("0"),
                "WORLD_SIZE is \"0\", expected the number of processes",
            ),
            ("WORLD_SIZE", Some(""), "WORLD_SIZE is \"\", expected"),
            (
                "MASTER_ADDR",
                None,
                "MASTER_ADDR is not set, expected the name or address",
            ),
            (
                "MASTER_ADDR",
                Some(""),
                "MASTER_ADDR is \"\", expected the name or address",
            ),
            (
                "MASTER_PORT",
                None,
                "MASTER_PORT is not set, expected a TCP port from 1 to 65535",
            ),
            (
                "MASTER_PORT",
                Some("0"),
                "MASTER_PORT is \"0\", expected a TCP port",
            ),
            (
                "MASTER_PORT",
                Some("65536"),
                "MASTER_PORT is \"65536\", expected a TCP port",
            ),
            (
                "LOCAL_RANK",
                Some("4"),
                "LOCAL_RANK is \"4\", expected this process's number on its node",
            ),
            (
                "LOCAL_WORLD_SIZE",
                Some("5"),
                "LOCAL_WORLD_SIZE is \"5\", expected the number",
            ),
            (
                "LOCAL_WORLD_SIZE",
                Some("0"),
                "LOCAL_WORLD_SIZE is \"0\", expected the number",
            ),
            // Rank 1 cannot be the only process of its node and have number 1 there.
            (
                "LOCAL_WORLD_SIZE",
                Some("1"),
                "LOCAL_RANK is not set, expected",
            ),
        ] {
            let message = message(name, value);
            assert!(message.starts_with(expected), "{message}\n{expected}");
            assert!(message.contains("torchrun"), "{message}");
        }
    }
}
