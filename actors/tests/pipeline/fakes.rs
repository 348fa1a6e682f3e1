//! Fakes: a teacher and a student whose state is a hash of everything they saw, in order; sequences that are numbers.

mod models;
pub mod peers;
mod watcher;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use ddk_actors::{
    DecayLeft, Generation, LoopState, Outcome, Peers, PortError, Run, RunError, RunPlan, StopReason,
};
use ddk_mixture::{Ddk, InitialMixture, Policy};
use ddk_run::{CheckpointStore, Journal, Lengths, Overrides, Retention, control::Command};
use ddk_telemetry::Board;
use serde_json::Value;

use self::models::{FakeRows, FakeStudent, FakeTeacher};
use self::watcher::Telling;
pub use self::watcher::{Watcher, Watching, dawdle};

/// What a test may do at a place in the pipeline: delay, panic, fail, wait for a gate.
pub type Hook = Arc<dyn Fn(&str, u64) -> Result<(), PortError> + Send + Sync>;

/// A run in its own folder.
pub struct World {
    pub folder: tempfile::TempDir,
    pub plan: RunPlan,
    pub hook: Hook,
    pub observer: Arc<Watcher>,
    /// Commands to send after a step.
    pub commands: Vec<(u64, Command)>,
    /// The step after which to stop the run.
    pub stop_after: Option<u64>,
    /// Every save of these steps fails.
    pub full_disk: Vec<u64>,
    /// The mixture's policy of a new run.
    pub policy: Policy,
    /// The other ranks, if there are several.
    pub peers: Option<Arc<dyn Peers>>,
    /// On another rank than the first: the folder of rank 0, which has the checkpoints and overrides.
    pub shared: Option<PathBuf>,
}

pub const ROWS: [u64; 3] = [7, 40, 23];

impl World {
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            plan: RunPlan {
                domains: ["a", "b", "c"].map(str::to_owned).to_vec(),
                domain_sequences: ROWS.to_vec(),
                natural: vec![0.1, 0.5, 0.4],
                seed: 11,
                sequences_per_step: 6,
                slots: 1,
                micro_rows: 2,
                chunk: 64,
                max_steps: Some(17),
                interval_end: None,
                max_steps_reason: StopReason::MaxSteps,
                max_tokens: None,
                target_gap: None,
                patience: None,
                min_improvement: 0.0,
                lag: 0,
                evaluation_every: None,
                keep_best: false,
                decay_left: DecayLeft::new(|step| 1.0 - (step.min(17) as f64) / 17.0),
                max_passes: None,
                queue_depth: 2,
                replicas: 1,
                live: saving_every(3),
                gamma: 0.2,
                layer_weight: None,
                skip: std::collections::BTreeSet::new(),
                recovery: ddk_settings::Recovery {
                    max_consecutive_skips: 3,
                    max_rollbacks: 0,
                    spike_action: ddk_settings::SpikeAction::Ignore,
                    ..ddk_settings::Recovery::default()
                },
                evaluation_flops: 1e6,
                teacher_evaluation_flops: 1e7,
                teacher_evaluation_seconds: None,
                checkpoint_bytes: 0,
            },
            hook: Arc::new(|_, _| Ok(())),
            observer: Arc::new(Watcher::default()),
            commands: Vec::new(),
            stop_after: None,
            full_disk: Vec::new(),
            policy: Policy::Ddk(Ddk::new(0.5, 5, InitialMixture::Natural)),
            peers: None,
            shared: None,
        }
    }

    /// Runs, from the last checkpoint if there is one.
    pub async fn run(&self) -> Result<Option<Outcome>, RunError> {
        let own = self.folder.path().to_owned();
        let folder = self.shared.clone().unwrap_or(own);
        let overrides = Arc::new(Overrides::open(&folder).unwrap());
        let assembly = Assembly {
            folder,
            peers: self.peers.clone(),
            plan: self.plan.clone(),
            hook: self.hook.clone(),
            observer: self.observer.clone(),
            full_disk: self.full_disk.clone(),
            policy: self.policy.clone(),
            overrides: overrides.clone(),
        };
        let run = Run::start(move || Ok(assembly.assemble()), overrides).await?;
        let told = Telling {
            run: run.handle(),
            stop_after: self.stop_after,
            commands: self.commands.clone(),
            runtime: tokio::runtime::Handle::current(),
        };
        *self.observer.telling.lock().unwrap() = Some(told);
        let ended = run.ended().await;
        *self.observer.telling.lock().unwrap() = None;
        ended
    }

    /// Makes the student die in this step.
    pub fn dying_in(mut self, step: u64) -> Self {
        self.hook = Arc::new(move |place, number| {
            assert!(
                !(place == "update" && number == step),
                "the student dies in step {step}"
            );
            Ok(())
        });
        self
    }

    /// Everything that must be equal for equal runs: lines without their seconds, and the student's weight.
    pub fn trajectory(&self) -> (BTreeMap<&'static str, Vec<Value>>, u64) {
        let files = ["run.jsonl", "mixture.jsonl", "samples.jsonl"];
        let lines = files.map(|file| (file, self.lines(file)));
        (lines.into_iter().collect(), self.weight())
    }

    pub fn lines(&self, file: &str) -> Vec<Value> {
        fs::read_to_string(self.folder.path().join(file))
            .unwrap()
            .lines()
            .map(|line| {
                let mut value: Value = serde_json::from_str(line).unwrap();
                value.as_object_mut().unwrap().remove("seconds");
                value
            })
            .collect()
    }

    pub fn weight(&self) -> u64 {
        let store =
            CheckpointStore::open(&self.folder.path().join("checkpoints"), Retention::last(2))
                .unwrap();
        read_weight(&store.newest::<LoopState>().unwrap().unwrap().path)
    }
}

/// What the generations of a run are built from.
struct Assembly {
    folder: PathBuf,
    peers: Option<Arc<dyn Peers>>,
    plan: RunPlan,
    hook: Hook,
    observer: Arc<Watcher>,
    full_disk: Vec<u64>,
    policy: Policy,
    overrides: Arc<Overrides>,
}

impl Assembly {
    fn assemble(&self) -> Generation<FakeTeacher, FakeStudent> {
        let store =
            CheckpointStore::open(&self.folder.join("checkpoints"), Retention::last(2)).unwrap();
        let opened = store.newest::<LoopState>().unwrap();
        let (resume, checkpoint) = match opened {
            Some(opened) => (Some(opened.state), Some(opened.path)),
            None => (None, None),
        };
        let lengths = resume
            .as_ref()
            .map_or(Lengths::default(), |state| state.lengths);
        let (hook, full_disk) = (self.hook.clone(), self.full_disk.clone());
        let (student_hook, teacher_hook, batcher_hook) = (hook.clone(), hook.clone(), hook.clone());
        let mut plan = self.plan.clone();
        plan.skip.extend(self.overrides.skip_steps());
        let step = resume.as_ref().map_or(0, |state| state.step);
        let live = plan.live.get(ddk_settings::Settings::clone);
        plan.live = ddk_actors::Live::new(live.with(&self.overrides.up_to(step + 1)).unwrap());
        let of_student = plan.live.clone();
        let teacher_perplexities = resume.as_ref().map(|state| state.baseline.teacher.clone());
        let is_first = self.peers.as_ref().is_none_or(|peers| peers.rank() == 0);
        let journal = if is_first {
            Journal::open(&self.folder, lengths, true).unwrap()
        } else {
            Journal::silent()
        };
        let peers = self.peers.clone();
        let new_run = || LoopState::new(&plan, self.policy.clone());
        Generation {
            state: resume.unwrap_or_else(new_run),
            plan,
            teacher_perplexities,
            teacher: Arc::new(move |replica| {
                teacher_hook("build teacher", replica as u64)?;
                Ok(FakeTeacher {
                    hook: teacher_hook.clone(),
                    labeled: 0,
                })
            }),
            student: Box::new(move || {
                student_hook("build student", 0)?;
                let weight = match checkpoint {
                    Some(folder) => read_weight(&folder),
                    None => 1,
                };
                Ok(FakeStudent {
                    weight,
                    pending: 0,
                    sum: 0.0,
                    slots: Vec::new(),
                    peers,
                    step: 0,
                    hook: student_hook,
                    full_disk,
                    live: of_student,
                })
            }),
            rows: Arc::new(move |domain, cursor| {
                Ok(Box::new(FakeRows {
                    domain: domain as u64,
                    cursor,
                    hook: hook.clone(),
                }))
            }),
            batcher: Arc::new(move |step| batcher_hook("draw", step)),
            checkpoints: store,
            journal: Arc::new(journal),
            overrides: self.overrides.clone(),
            board: Board::new(std::time::Duration::from_secs(3600)),
            observer: Arc::new(Watching(self.observer.clone())),
            peers: self.peers.clone(),
        }
    }
}

/// Settings that save a checkpoint every `steps` steps.
pub fn saving_every(steps: u64) -> Arc<ddk_actors::Live> {
    let mut settings = ddk_settings::Settings::default();
    (
        settings.checkpoint.interval,
        settings.checkpoint.keep_latest,
    ) = (steps, 2);
    ddk_actors::Live::new(settings)
}

fn read_weight(folder: &Path) -> u64 {
    fs::read_to_string(folder.join("weight"))
        .unwrap()
        .parse()
        .unwrap()
}
