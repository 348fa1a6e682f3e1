//! Builds the actors' plan from the settings and the corpus.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use ddk_actors::{Live, RunPlan, StopReason};
use ddk_settings::{ExportedStudent, ObjectiveName, Settings};

use super::schedule::Length;
use crate::{
    hint::Hint,
    objective,
    prepare::{self, Corpus},
};

/// Fails if the limit on epochs leaves too few sequences for a single step.
pub(super) fn room_for_a_step(settings: &Settings, corpus: &Corpus) -> Result<()> {
    let Some(passes) = settings.mixture.max_epochs else {
        return Ok(());
    };
    let rows = corpus.domains.iter();
    let rows: u64 = rows
        .map(|domain| (passes * domain.rows() as f64) as u64)
        .sum();
    if rows >= settings.training.global_batch_size {
        return Ok(());
    }
    Err(anyhow!(
        "`mixture.max_epochs` = {passes} allows {rows} sequences, but a step needs `training.global_batch_size` = {}",
        settings.training.global_batch_size
    ))
    .hint("add text, or lower training.global_batch_size or corpus.sequence_length")
    .usage()
}

pub(super) fn of_settings(settings: &Settings, corpus: &Corpus, length: &Length) -> RunPlan {
    let run = &settings.run;
    let of_intervals = run
        .max_intervals
        .map(|intervals| intervals * settings.mixture.interval);
    let (max_steps, max_steps_reason) = match (run.max_steps, of_intervals) {
        (Some(steps), Some(of_intervals)) if of_intervals < steps => {
            (Some(of_intervals), StopReason::MaxIntervals)
        }
        (None, Some(of_intervals)) => (Some(of_intervals), StopReason::MaxIntervals),
        (steps, _) => (steps, StopReason::MaxSteps),
    };
    let objective = objective::of_settings(&settings.objective);
    RunPlan {
        domains: corpus.names().map(str::to_owned).collect(),
        domain_sequences: corpus.domains.iter().map(|domain| domain.rows()).collect(),
        natural: prepare::natural_shares(corpus),
        seed: run.seed,
        sequences_per_step: settings.training.global_batch_size,
        micro_rows: settings.training.micro_batch_size,
        chunk: 0,
        max_steps,
        interval_end: length.interval_end(),
        max_steps_reason,
        max_tokens: run.max_tokens,
        target_gap: run.target_gap,
        lag: settings.mixture.lag,
        evaluation_every: settings.evaluation.interval,
        keep_best: keeps_best(settings),
        max_passes: settings.mixture.max_epochs,
        queue_depth: settings.pipeline.queue_depth,
        replicas: settings.teacher.devices.len(),
        live: Live::new(settings.clone()),
        gamma: objective.divergence_weight(),
        layer_weight: (settings.objective.name == ObjectiveName::Ted)
            .then_some(objective.layer_weight),
        skip: BTreeSet::new(),
        recovery: settings.recovery.clone(),
        evaluation_flops: 0.0,
        teacher_evaluation_flops: 0.0,
    }
}

/// Returns whether to keep the checkpoint of the best student: if the settings ask for it, or if it is to be
/// exported.
pub(super) fn keeps_best(settings: &Settings) -> bool {
    settings.checkpoint.keep_best || settings.run.export == ExportedStudent::Best
}
