//! Prepares a run: collects and checks everything that is known before its first worker starts.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use anyhow::{Result, anyhow};
use ddk_actors::{DecayLeft, Live, RunPlan, StopReason};
use ddk_engine::{Evaluation, Schedule};
use ddk_labels::LabelSet;
use ddk_settings::{ExportedStudent, ObjectiveName, Recovery, Settings};

use super::{
    course, filters,
    inputs::Inputs,
    labels,
    options::{self, Length, most_steps, objective, steps_of_intervals},
    session::Session,
};
use crate::{
    config::required,
    faults::Faults,
    findings::{Findings, tokenizers},
    hint::Hint,
    phase::Phase,
    prepare::{self, Corpus, Outdated},
    ranks::grace_seconds,
    wiring::{ModelFolders, Models},
};

/// Everything that is known before the first worker starts.
pub(super) struct Prepared {
    /// The models, and the settings of the run.
    pub(super) models: Models,
    pub(super) corpus: Corpus,
    pub(super) inputs: Inputs,
    pub(super) length: Length,
    pub(super) evaluation: Evaluation,
    /// The cache of the teacher's outputs, if the run has one.
    pub(super) labels: Option<Arc<LabelSet>>,
    pub(super) plan: RunPlan,
    /// The mean weights of DoReMi's proxy, if this run is DoReMi's third phase and the proxy has run.
    pub(super) doremi: Option<Vec<f64>>,
    pub(super) faults: Arc<Faults>,
    /// Where the student is exported, if not to the run folder. Such a run has no teacher.
    pub(super) destination: Option<Destination>,
}

/// Where `ddk pretrain` exports its model, which it trains without a teacher.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    /// The model's folder.
    pub(crate) folder: PathBuf,
    /// Name and text of a file beside its weights.
    pub(crate) record: (&'static str, String),
}

/// Loads everything small and checks that it fits together, before writing anything.
pub(super) fn prepare_run(
    settings: &Settings,
    destination: Option<Destination>,
    outdated: Outdated<'_>,
    length: Length,
    session: &Session,
) -> Result<Prepared> {
    let signals = &session.signals;
    let folders = if destination.is_some() {
        let student = required(settings.student.model.clone(), "student.model")?;
        ModelFolders::without_teacher(settings.local(&student))
    } else {
        ModelFolders::of(settings)?
    };
    most_steps(settings)?;
    signals.begin(Phase::Prepare)?;
    // Check the models first, so that their problems appear before minutes of tokenizing.
    if folders.has_teacher {
        folders.configs()?;
        Findings::first(|found| tokenizers(settings, &folders, found))?;
    }
    session.announce();
    let filters = filters::of_run(settings, &folders)?;
    let corpus = prepare::open(settings, outdated)?;
    signals.begin(Phase::Hash)?;
    let mut inputs = Inputs::of(&folders, &corpus, settings.corpus.sequence_length)?;
    inputs.revisions.clone_from(&settings.places.revisions);
    room_for_a_step(settings, &corpus)?;
    let labels = labels::of_run(settings, &folders, &inputs)?;
    let evaluation = prepare::evaluation(settings, &corpus)?;
    let mut options = options::of_student(settings, evaluation.vocabulary, filters)?;
    options.schedule.total_steps = length.steps;
    let models = Models {
        settings: settings.clone(),
        folders,
        options,
    };
    let flops = models.flop_counter()?;
    let mut plan = plan(settings, &corpus, &length);
    plan.evaluation_flops = flops.student_evaluation(&evaluation.validation);
    plan.teacher_evaluation_flops = flops.teacher_evaluation(&evaluation.validation);
    plan.teacher_evaluation_seconds =
        course::teacher_evaluation(settings, plan.teacher_evaluation_flops);
    plan.checkpoint_bytes = course::checkpoint_bytes(&models.folders.student);
    Ok(Prepared {
        models,
        corpus,
        inputs,
        length,
        evaluation,
        labels,
        plan,
        doremi: None,
        faults: signals.faults(),
        destination,
    })
}

/// Fails if the limit on epochs leaves too few sequences for a single step.
fn room_for_a_step(settings: &Settings, corpus: &Corpus) -> Result<()> {
    let Some(passes) = settings.mixture.most_epochs() else {
        return Ok(());
    };
    let rows = corpus.domains.iter().map(|domain| domain.rows() as f64);
    let rows: u64 = rows.map(|rows| (passes * rows) as u64).sum();
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

/// Builds the actors' plan from the settings and the corpus.
fn plan(settings: &Settings, corpus: &Corpus, length: &Length) -> RunPlan {
    let run = &settings.run;
    let limits = [
        run.max_steps.map(|steps| (steps, StopReason::MaxSteps)),
        steps_of_intervals(settings).map(|steps| (steps, StopReason::MaxIntervals)),
    ];
    let nearest = limits.into_iter().flatten().min_by_key(|(steps, _)| *steps);
    let objective = objective(&settings.objective);
    let schedule = Schedule {
        total_steps: length.steps,
        ..options::schedule(settings)
    };
    RunPlan {
        domains: corpus.names().map(str::to_owned).collect(),
        domain_sequences: corpus.domains.iter().map(|domain| domain.rows()).collect(),
        natural: prepare::natural_shares(corpus),
        seed: run.seed,
        sequences_per_step: settings.training.global_batch_size,
        slots: settings.parallel.slots,
        micro_rows: settings.training.micro_batch_size,
        chunk: 0,
        max_steps: nearest.map(|(steps, _)| steps),
        interval_end: length.interval_end(),
        max_steps_reason: nearest.map_or(StopReason::MaxSteps, |(_, reason)| reason),
        max_tokens: run.max_tokens,
        target_gap: run.target_gap,
        patience: run.patience,
        min_improvement: run.min_improvement,
        lag: settings.mixture.lag,
        evaluation_every: settings.evaluation.interval,
        keep_best: keeps_best(settings),
        decay_left: DecayLeft::new(move |step| schedule.decay_left(step)),
        max_passes: settings.mixture.most_epochs(),
        queue_depth: settings.pipeline.queue_depth,
        replicas: settings.teacher.replicas(),
        live: Live::new(settings.clone()),
        gamma: objective.divergence_weight(),
        layer_weight: (settings.objective.name == ObjectiveName::Ted)
            .then_some(objective.layer_weight),
        skip: BTreeSet::new(),
        recovery: Recovery {
            shutdown_grace_seconds: grace_seconds(settings),
            ..settings.recovery.clone()
        },
        evaluation_flops: 0.0,
        teacher_evaluation_flops: 0.0,
        teacher_evaluation_seconds: None,
        checkpoint_bytes: 0,
    }
}

/// Returns whether to keep the checkpoint of the best student: if the settings ask for it, or if it is to be
/// exported.
pub(super) fn keeps_best(settings: &Settings) -> bool {
    settings.checkpoint.keep_best || settings.run.export == ExportedStudent::Best
}
