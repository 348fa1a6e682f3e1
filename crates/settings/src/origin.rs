//! Where a value came from.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use crate::Method;

/// The layer, and the place in it, that a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A built-in default.
    Default,
    /// What the method in use stands for.
    Method(Method),
    /// A file, and the line in it.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
    /// A `--set` of the command line.
    Set(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::Method(method) => write!(formatter, "method {}", method.name()),
            Self::File(path, line) => write!(formatter, "{}:{line}", path.display()),
            Self::Environment(name) => write!(formatter, "environment {name}"),
            Self::Set(text) => write!(formatter, "--set {text}"),
        }
    }
}

/// Origins by key (`student.lr`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Where the value of a key came from; a key that no layer has is a default. A table's key gives the
    /// origin of its first value.
    pub fn of(&self, key: &str) -> Origin {
        let inside = format!("{key}.");
        self.0
            .get(key)
            .or_else(|| {
                self.0
                    .range(inside.clone()..)
                    .next()
                    .filter(|(found, _)| found.starts_with(&inside))
                    .map(|(_, origin)| origin)
            })
            .cloned()
            .unwrap_or(Origin::Default)
    }

    /// What a method stands for is the origin of its choices, unless they were written.
    pub(crate) fn record_method(&mut self, method: Method) {
        for (key, _) in method.choices() {
            self.0
                .entry(key.to_owned())
                .or_insert_with(|| method.origin());
        }
    }

    pub(crate) fn record(&mut self, key: String, origin: Origin) {
        self.0.insert(key, origin);
    }
}
