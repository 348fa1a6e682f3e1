//! From settings to what the student is made with.

use anyhow::Result;
use ddk_engine::{AdamWOptions, Filters, Schedule, StudentOptions};
use ddk_objective::default_chunk;
use ddk_settings::Settings;
use ddk_torch::parse_device;

use super::schedule::Length;
use crate::objective;

/// How the student learns; `vocabulary`: the tokenizer's ids.
pub fn of_student(
    settings: &Settings,
    vocabulary: i64,
    filters: Option<Filters>,
) -> Result<StudentOptions> {
    let student = &settings.student;
    let device = parse_device(&student.device)?;
    let chunk = settings.objective.chunk;
    Ok(StudentOptions {
        objective: objective::of_settings(&settings.objective),
        vocabulary,
        chunk: chunk.unwrap_or_else(|| default_chunk(vocabulary, device)),
        recompute: student.recompute,
        adamw: AdamWOptions {
            beta1: student.beta1,
            beta2: student.beta2,
            epsilon: student.epsilon,
            weight_decay: student.weight_decay,
        },
        clip_norm: student.clip_norm,
        schedule: Schedule {
            peak: student.lr,
            end: student.lr_end,
            warmup_steps: student.warmup_steps,
            total_steps: Length::of(settings).steps,
        },
        filters,
    })
}

/// The steps that a run has at the most, by the nearest of its limits, where all its rows are full.
pub fn most_steps(settings: &Settings) -> Option<u64> {
    let run = &settings.run;
    let step_tokens = settings.batch.rows * settings.corpus.sequence_length as u64;
    let limits = [
        run.max_steps,
        run.max_intervals
            .map(|intervals| intervals * settings.mixture.interval),
        run.max_tokens.map(|tokens| tokens.div_ceil(step_tokens)),
    ];
    limits.into_iter().flatten().min()
}
