//! Reads a run's limits from its `config.toml`.

use std::{fs, path::Path};

use serde::Deserialize;

/// The limits that are set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Steps, from `run.max_steps` or `run.max_intervals`.
    pub(super) steps: Option<u64>,
    /// `run.max_tokens`.
    pub(super) tokens: Option<u64>,
}

/// The settings needed here. All are optional, so that a run of another version can still be viewed.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    run: Run,
    #[serde(default)]
    mixture: Mixture,
}

#[derive(Default, Deserialize)]
struct Run {
    max_steps: Option<u64>,
    max_intervals: Option<u64>,
    max_tokens: Option<u64>,
}

#[derive(Default, Deserialize)]
struct Mixture {
    interval: Option<u64>,
}

impl Limits {
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let text =
            fs::read_to_string(folder.join("config.toml")).map_err(|error| error.to_string())?;
        let config: Config = toml::from_str(&text).map_err(|error| error.message().to_owned())?;
        let of_intervals = config
            .run
            .max_intervals
            .zip(config.mixture.interval)
            .map(|(intervals, steps)| intervals.saturating_mul(steps));
        Ok(Self {
            steps: config.run.max_steps.into_iter().chain(of_intervals).min(),
            tokens: config.run.max_tokens,
        })
    }
}
