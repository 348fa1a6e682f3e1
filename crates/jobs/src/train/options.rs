//! Converts settings to the student's options, and to the length of its schedule.

use std::path::Path;

use anyhow::{Context, Result};
use ddk_engine::{
    AdamWOptions, DecayForm, DecaySteps, Filters, Parallel, Schedule, Shape, StudentOptions,
};
use ddk_objective::{Objective, default_chunk};
use ddk_run::{RunFolder, read::record};
use ddk_settings::{LrDecay, LrSchedule, LrScheduler, Settings};
use ddk_torch::parse_device;
use serde::{Deserialize, Serialize};

use crate::{config, hint::Hint};

/// Returns the student's options. `vocabulary`: number of the tokenizer's ids.
///
/// # Errors
/// If `student.device` cannot be used.
pub fn of_student(
    settings: &Settings,
    vocabulary: i64,
    filters: Option<Filters>,
) -> Result<StudentOptions> {
    let optimizer = &settings.optimizer;
    Ok(StudentOptions {
        objective: objective(&settings.objective),
        vocabulary,
        chunk: chunk(settings, vocabulary)?,
        recompute: settings.student.activation_checkpointing,
        adamw: AdamWOptions {
            beta1: optimizer.beta1,
            beta2: optimizer.beta2,
            epsilon: optimizer.eps,
            weight_decay: optimizer.weight_decay,
        },
        clip_norm: optimizer.max_grad_norm,
        schedule: schedule(settings),
        filters,
        parallel: Parallel {
            slots: settings.parallel.slots as usize,
            group: None,
        },
    })
}

/// Returns the student's loss.
pub fn objective(objective: &ddk_settings::Objective) -> Objective {
    let has_layers = objective.has_layers();
    Objective {
        divergence: objective.divergence(),
        gamma: objective.gamma,
        temperature: objective.temperature,
        scale_by_temperature_squared: objective.scale_by_temperature_squared,
        layer_weight: if has_layers {
            objective.ted_weight
        } else {
            0.0
        },
    }
}

/// Returns the learning-rate schedule of a new run.
pub fn schedule(settings: &Settings) -> Schedule {
    let lr_scheduler = &settings.lr_scheduler;
    Schedule {
        shape: shape(lr_scheduler),
        peak: settings.optimizer.lr,
        end: lr_scheduler.min_lr,
        warmup_steps: lr_scheduler.warmup_steps,
        total_steps: Length::of(settings).steps,
    }
}

fn shape(lr_scheduler: &LrScheduler) -> Shape {
    match lr_scheduler.shape {
        LrSchedule::Cosine => Shape::Cosine,
        LrSchedule::Linear => Shape::Linear,
        LrSchedule::Constant => Shape::Constant,
        LrSchedule::Wsd => Shape::Wsd {
            steps: match lr_scheduler.decay_steps {
                Some(steps) => DecaySteps::Number(steps),
                None => DecaySteps::Fraction(lr_scheduler.decay_fraction),
            },
            form: match lr_scheduler.decay_type {
                LrDecay::Linear => DecayForm::Linear,
                LrDecay::Cosine => DecayForm::Cosine,
                LrDecay::OneMinusSqrt => DecayForm::OneMinusSqrt,
            },
        },
    }
}

/// Returns the number of positions whose logits are computed at a time.
///
/// # Errors
/// If `student.device` cannot be used.
pub fn chunk(settings: &Settings, vocabulary: i64) -> Result<i64> {
    let device = parse_device(&settings.student.device)?;
    let chunk = settings.objective.chunk_size;
    Ok(chunk.unwrap_or_else(|| default_chunk(vocabulary, device)))
}

/// Returns the steps in `run.max_intervals`.
pub(super) fn steps_of_intervals(settings: &Settings) -> Option<u64> {
    Some(settings.run.max_intervals? * settings.mixture.interval)
}

/// Returns the maximum number of steps of a run, by the nearest of its limits, if all its sequences are full.
///
/// # Errors
/// If the run has no limit.
pub fn most_steps(settings: &Settings) -> Result<u64> {
    let run = &settings.run;
    let step_tokens = settings.training.global_batch_size * settings.corpus.sequence_length as u64;
    let limits = [
        run.max_steps,
        steps_of_intervals(settings),
        run.max_tokens.map(|tokens| tokens.div_ceil(step_tokens)),
    ];
    let nearest = limits.into_iter().flatten().min();
    nearest
        .context("the run has no end: none of run.max_steps, run.max_intervals and run.max_tokens is set")
        .usage()
}

/// The file in a run's folder that records the length of its schedule.
const FILE: &str = "schedule.json";

/// The length of a run's schedule: the length that the run had at its first start, even if it is extended later.
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
        let set = settings.lr_scheduler.total_steps;
        let steps = set.or(most_steps(settings).ok()).unwrap_or(u64::MAX);
        Self {
            steps,
            ends_interval: set.is_some() || settings.run.max_steps == Some(steps),
        }
    }

    /// Returns the length of the run in this folder. If the folder holds no run, returns the length of a new one.
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
        let text = serde_json::to_vec_pretty(self)?;
        let path = folder.path().join(FILE);
        Ok(ddk_files::write_atomically(&path, &text)?)
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
