//! Reads a run's limits from its `config.toml`.

use std::{fs, path::Path};

use serde::Deserialize;

/// The settings that limit a run. All are optional, so that a run of another version can still be viewed.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub(super) struct Limits {
    run: Run,
    mixture: Mixture,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Run {
    max_steps: Option<u64>,
    max_intervals: Option<u64>,
    max_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Mixture {
    interval: Option<u64>,
}

impl Limits {
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(folder.join("config.toml"));
        let text = text.map_err(|error| error.to_string())?;
        toml::from_str(&text).map_err(|error| error.message().to_owned())
    }

    /// Steps, from `run.max_steps` or `run.max_intervals`.
    pub(super) fn steps(&self) -> Option<u64> {
        let of_intervals = self.run.max_intervals.zip(self.mixture.interval);
        let of_intervals = of_intervals.map(|(intervals, steps)| intervals.saturating_mul(steps));
        self.run.max_steps.into_iter().chain(of_intervals).min()
    }

    /// `run.max_tokens`.
    pub(super) fn tokens(&self) -> Option<u64> {
        self.run.max_tokens
    }
}
