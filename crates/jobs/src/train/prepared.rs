//! Prepares a run: collects and checks everything that is known before its first worker starts.

use std::{path::PathBuf, sync::Arc};

use anyhow::Result;
use ddk_actors::RunPlan;
use ddk_engine::{Evaluation, StudentOptions};
use ddk_mixture::Policy;
use ddk_settings::Settings;

use super::{
    filters,
    inputs::Inputs,
    options::{self, most_steps},
    plan, policy,
    schedule::Length,
};
use crate::{
    config::required,
    faults::Faults,
    findings::{Findings, tokenizers},
    phase::Phase,
    prepare::{self, Corpus, Outdated},
    signals::Signals,
    wiring::{self, ModelFolders},
};

/// Everything that is known before the first worker starts.
pub(super) struct Prepared {
    pub(super) settings: Settings,
    pub(super) folders: ModelFolders,
    pub(super) corpus: Corpus,
    pub(super) inputs: Inputs,
    pub(super) length: Length,
    pub(super) evaluation: Evaluation,
    pub(super) options: StudentOptions,
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

impl Prepared {
    /// Returns the policy that a new run begins with.
    pub(super) fn policy(&self) -> Result<Box<dyn Policy>> {
        let ground = policy::Ground {
            domains: &self.plan.domains,
            natural: &self.plan.natural,
            vocabulary: self.options.vocabulary,
            doremi: self.doremi.as_deref(),
        };
        policy::of_settings(&self.settings.mixture, &ground)
    }
}

/// Loads everything small and checks that it fits together, before writing anything.
pub(super) fn prepare_run(
    settings: &Settings,
    destination: Option<Destination>,
    outdated: Outdated<'_>,
    length: Length,
    signals: &Signals,
) -> Result<Prepared> {
    let folders = if destination.is_some() {
        ModelFolders::without_teacher(required(settings.student.model.clone(), "student.model")?)
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
    let filters = filters::of_run(settings, &folders)?;
    let corpus = prepare::open(settings, outdated)?;
    signals.begin(Phase::Hash)?;
    let inputs = Inputs::of(&folders, &corpus, settings.corpus.sequence_length)?;
    plan::room_for_a_step(settings, &corpus)?;
    let evaluation = prepare::evaluation(settings, &corpus)?;
    let mut options = options::of_student(settings, evaluation.vocabulary, filters)?;
    options.schedule.total_steps = length.steps;
    let flops = wiring::flop_counter(&folders, &options)?;
    let plan = RunPlan {
        evaluation_flops: flops.student_evaluation(&evaluation.validation),
        teacher_evaluation_flops: flops.teacher_evaluation(&evaluation.validation),
        ..plan::of_settings(settings, &corpus, &length)
    };
    Ok(Prepared {
        settings: settings.clone(),
        folders,
        corpus,
        inputs,
        length,
        evaluation,
        options,
        plan,
        doremi: None,
        faults: signals.faults(),
        destination,
    })
}
