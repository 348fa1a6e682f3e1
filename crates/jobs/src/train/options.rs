//! Converts settings to the student's options.

use anyhow::{Context, Result};
use ddk_engine::{AdamWOptions, Filters, Schedule, StudentOptions};
use ddk_objective::default_chunk;
use ddk_settings::Settings;
use ddk_torch::parse_device;

use super::schedule::Length;
use crate::{hint::Hint, objective};

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
        objective: objective::of_settings(&settings.objective),
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
    })
}

/// Returns the learning-rate schedule of a new run.
pub fn schedule(settings: &Settings) -> Schedule {
    let lr_scheduler = &settings.lr_scheduler;
    Schedule {
        peak: settings.optimizer.lr,
        end: lr_scheduler.min_lr,
        warmup_steps: lr_scheduler.warmup_steps,
        total_steps: Length::of(settings).steps,
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

/// Returns the maximum number of steps of a run, by the nearest of its limits, if all its sequences are full.
///
/// # Errors
/// If the run has no limit.
pub fn most_steps(settings: &Settings) -> Result<u64> {
    let run = &settings.run;
    let step_tokens = settings.training.global_batch_size * settings.corpus.sequence_length as u64;
    let limits = [
        run.max_steps,
        run.max_intervals
            .map(|intervals| intervals * settings.mixture.interval),
        run.max_tokens.map(|tokens| tokens.div_ceil(step_tokens)),
    ];
    let nearest = limits.into_iter().flatten().min();
    nearest
        .context("the run has no end: none of run.max_steps, run.max_intervals and run.max_tokens is set")
        .usage()
}
