//! The length of a run's schedule: the length that the run had at its first start, even if it is extended later.

use std::path::Path;

use anyhow::Result;
use ddk_run::{RunFolder, read::record};
use ddk_settings::Settings;
use serde::{Deserialize, Serialize};

use super::options::most_steps;
use crate::config;

const FILE: &str = "schedule.json";

/// The length of a run's schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Length {
    /// Steps until the learning rate reaches its final value.
    pub(super) steps: u64,
    /// Whether an interval ends with the schedule. It does if `run.max_steps` may have cut one short there. It also
    /// does if the schedule's length is set, so that both give the same result.
    ends_interval: bool,
}

impl Length {
    /// Returns the length for a run that these settings start.
    pub(super) fn of(settings: &Settings) -> Self {
        let steps = settings
            .lr_scheduler
            .total_steps
            .or(most_steps(settings).ok());
        let steps = steps.unwrap_or(u64::MAX);
        Self {
            steps,
            ends_interval: settings.lr_scheduler.total_steps.is_some()
                || settings.run.max_steps == Some(steps),
        }
    }

    /// Returns the length for the run in this folder, or for a new run if there is none.
    pub(super) fn of_run(folder: &Path, settings: &Settings) -> Result<Self> {
        if !RunFolder::holds_a_run(folder) {
            return Ok(Self::of(settings));
        }
        let path = folder.join(FILE);
        if !path.exists() {
            // Earlier versions did not record it, and no limit could change after the start.
            return Ok(Self::of(&config::of_run(folder)?));
        }
        Ok(record(&path)?)
    }

    /// Writes the length to the run's folder. Call it before `config.toml` is written, which may hold other limits.
    pub(super) fn record(&self, folder: &RunFolder) -> Result<()> {
        let path = folder.path().join(FILE);
        Ok(ddk_files::write_atomically(
            &path,
            &serde_json::to_vec_pretty(self)?,
        )?)
    }

    /// Returns the step at which an interval ends, whatever the interval's length.
    pub(super) fn interval_end(&self) -> Option<u64> {
        self.ends_interval.then_some(self.steps)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn settings(sets: &[&str]) -> Settings {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        ddk_settings::load(&[], &sets, []).unwrap().settings
    }

    #[test]
    fn a_schedule_is_as_long_as_its_run_at_first_unless_it_is_set() {
        let of = |sets: &[&str]| {
            let length = Length::of(&settings(sets));
            (length.steps, length.interval_end())
        };
        assert_eq!(of(&["run.max_steps=100"]), (100, Some(100)));
        let set = ["run.max_steps=150", "lr_scheduler.total_steps=100"];
        assert_eq!(of(&set), (100, Some(100)));
        // A token budget ends a run in the middle of an interval, which continues if the budget grows.
        let tokens = [
            "run.max_tokens=1000",
            "training.global_batch_size=8",
            "training.micro_batch_size=8",
            "corpus.sequence_length=32",
        ];
        assert_eq!(of(&tokens), (4, None));
    }

    #[test]
    fn what_was_recorded_stays_and_earlier_versions_had_it_in_their_settings() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = RunFolder::open(&scratch.path().join("run")).unwrap();
        let (first, longer) = (
            settings(&["run.max_steps=100"]),
            settings(&["run.max_steps=150"]),
        );
        let steps = || Length::of_run(folder.path(), &longer).unwrap().steps;
        // Left by a start that was interrupted before the run existed.
        Length::of(&settings(&["run.max_steps=7"]))
            .record(&folder)
            .unwrap();
        assert_eq!(steps(), 150);
        fs::remove_file(folder.path().join(FILE)).unwrap();
        fs::write(folder.path().join("config.toml"), first.to_toml().unwrap()).unwrap();
        assert_eq!(steps(), 100);
        Length::of(&first).record(&folder).unwrap();
        fs::write(folder.path().join("config.toml"), longer.to_toml().unwrap()).unwrap();
        assert_eq!(steps(), 100);
    }
}
