//! Fakes: a teacher and a student whose state is a hash of everything they saw, in order; sequences that are numbers.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use ddk_actors::{
    Generation, LoopState, MicroBatch, Observer, Outcome, PortError, Rows, Run, RunError,
    RunHandle, RunPlan, StepReport, StopReason, Student, Teacher,
    ports::{Between, RunLink},
};
use ddk_corpus::{Cursor, Sample, Sequence, Span};
use ddk_mixture::{Ddk, InitialMixture, Policy};
use ddk_run::{
    CheckpointStore, Journal, Lengths, MicroBatchSums, Overrides, PhaseSeconds, Retention,
    SequenceLoss, SnapshotFile, Source, StepPhase, UpdateStats,
    control::{self, Command},
    records::{EventLine, MixtureLine},
};
use ddk_telemetry::{Board, Progress};
use serde_json::Value;

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
                micro_rows: 2,
                chunk: 64,
                max_steps: Some(17),
                interval_end: None,
                max_steps_reason: StopReason::MaxSteps,
                max_tokens: None,
                target_gap: None,
                lag: 0,
                evaluation_every: None,
                keep_best: false,
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
            },
            hook: Arc::new(|_, _| Ok(())),
            observer: Arc::new(Watcher::default()),
            commands: Vec::new(),
            stop_after: None,
            full_disk: Vec::new(),
            policy: Policy::Ddk(Ddk::new(0.5, 5, InitialMixture::Natural)),
        }
    }

    /// Runs, from the last checkpoint if there is one.
    pub async fn run(&self) -> Result<Option<Outcome>, RunError> {
        let overrides = Arc::new(Overrides::open(self.folder.path()).unwrap());
        let assembly = Assembly {
            folder: self.folder.path().to_owned(),
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
    folder: std::path::PathBuf,
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
            journal: Arc::new(Journal::open(&self.folder, lengths, true).unwrap()),
            overrides: self.overrides.clone(),
            board: Board::new(std::time::Duration::from_secs(3600)),
            observer: Arc::new(Watching(self.observer.clone())),
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

fn mix(state: u64, value: u64) -> u64 {
    let mut mixed = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^= mixed >> 29;
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (mixed >> 32)
}

fn hash_rows(batch: &MicroBatch) -> u64 {
    let samples = batch.samples.iter();
    samples.fold(batch.interval.index, |hash, sample| {
        mix(
            mix(hash, u64::from(sample.domain)),
            mix(sample.epoch, sample.sequence.number),
        )
    })
}

pub struct FakeTeacher {
    hook: Hook,
    labeled: u64,
}

impl Teacher for FakeTeacher {
    type TeacherOutput = u64;
    type Weights = FakeCopy;

    fn label(&mut self, batch: &MicroBatch, _: &dyn RunLink) -> Result<Option<u64>, PortError> {
        (self.hook)("label", batch.sequence)?;
        self.labeled += 1;
        Ok(Some(hash_rows(batch)))
    }

    fn perplexities(
        &mut self,
        _: &dyn RunLink,
        _: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        (self.hook)("evaluate teacher", 0)?;
        Ok(Some(vec![2.0, 3.0, 4.0]))
    }

    fn perplexities_of(
        &mut self,
        copy: &FakeCopy,
        between: Between<'_>,
    ) -> Result<Option<Vec<f64>>, PortError> {
        (self.hook)("evaluate copy", copy.step)?;
        Ok((!between(0, 1)).then(|| perplexities(copy.weight)))
    }

    fn busy_seconds(&self) -> f64 {
        self.labeled as f64
    }
}

/// The weights of a fake student after a step.
pub struct FakeCopy {
    step: u64,
    weight: u64,
}

fn perplexities(weight: u64) -> Vec<f64> {
    let shade = |index: u64| (mix(weight, index) % 1000) as f64 / 1000.0;
    vec![2.2 + shade(0), 3.3 + shade(1), 4.4 + shade(2)]
}

pub struct FakeStudent {
    weight: u64,
    pending: u64,
    step: u64,
    hook: Hook,
    full_disk: Vec<u64>,
    live: Arc<ddk_actors::Live>,
}

impl Student for FakeStudent {
    type TeacherOutput = u64;
    type Weights = FakeCopy;

    fn accumulate(&mut self, batch: &MicroBatch, signal: u64) -> Result<MicroBatchSums, PortError> {
        (self.hook)("accumulate", batch.sequence)?;
        assert_eq!(signal, hash_rows(batch), "another batch's signal");
        assert!((batch.interval.first_step..=batch.interval.last_step()).contains(&batch.step));
        self.pending = mix(self.pending, mix(signal, batch.step_predictions));
        let loss = (self.pending % 1000) as f64;
        let shade = |index: usize| (mix(self.pending, index as u64) % 1000) as f64 / 100.0;
        let losses = (0..batch.samples.len()).map(|index| SequenceLoss {
            ce: shade(index),
            excess: shade(index) / 2.0,
        });
        let miscounted = (self.hook)("miscount", batch.sequence).is_err();
        Ok(MicroBatchSums {
            ce: loss,
            kl: loss / 3.0,
            layer: 0.0,
            sequences: losses.collect(),
            targets: batch.num_targets() + u64::from(miscounted),
            seconds: PhaseSeconds::from([
                (StepPhase::TeacherWait, 0.0),
                (StepPhase::Forward, 0.0),
                (StepPhase::Head, 0.0),
                (StepPhase::Backward, 0.0),
            ]),
            teacher_flops: 30.0 * batch.samples.len() as f64,
            teacher_flops_saved: 0.0,
            student_flops: 10.0 * batch.samples.len() as f64,
        })
    }

    fn update(&mut self, step: u64) -> Result<UpdateStats, PortError> {
        (self.hook)("update", step)?;
        if (self.hook)("no update", step).is_err() {
            return self.discard(step, "on purpose");
        }
        let learning_rate = self.live.get(|settings| settings.optimizer.lr);
        self.weight = mix(self.weight, std::mem::take(&mut self.pending));
        self.weight = mix(self.weight, learning_rate.to_bits());
        self.step = step;
        Ok(UpdateStats {
            learning_rate,
            grad_norm: 1.0,
            skipped: None,
            seconds: PhaseSeconds::from([
                (StepPhase::TeacherWait, 0.0),
                (StepPhase::Optimizer, 0.0),
            ]),
        })
    }

    fn discard(&mut self, step: u64, reason: &str) -> Result<UpdateStats, PortError> {
        self.pending = 0;
        self.step = step;
        Ok(UpdateStats {
            learning_rate: 1e-3,
            grad_norm: f64::NAN,
            skipped: Some(reason.to_owned()),
            seconds: PhaseSeconds::from([
                (StepPhase::TeacherWait, 0.0),
                (StepPhase::Optimizer, 0.0),
            ]),
        })
    }

    fn perplexities(&mut self, between: Between<'_>) -> Result<Option<Vec<f64>>, PortError> {
        (self.hook)("evaluate student", self.step)?;
        if (self.hook)("evaluate until told", self.step).is_err() {
            while !between(0, 1) {
                std::thread::yield_now();
            }
            return Ok(None);
        }
        if between(0, 1) {
            return Ok(None);
        }
        if (self.hook)("not finite", self.step).is_err() {
            return Ok(Some(vec![f64::NAN, 3.0, 4.0]));
        }
        Ok(Some(perplexities(self.weight)))
    }

    fn weights(&mut self) -> Result<FakeCopy, PortError> {
        Ok(FakeCopy {
            step: self.step,
            weight: self.weight,
        })
    }

    fn snapshot(&mut self) -> Result<Vec<SnapshotFile>, PortError> {
        let (weight, full) = (self.weight, self.full_disk.contains(&self.step));
        Ok(vec![SnapshotFile::new("weight", move |out| {
            if full {
                return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
            }
            write!(out, "{weight}")
        })])
    }

    fn busy_seconds(&self) -> f64 {
        self.step as f64
    }
}

struct FakeRows {
    domain: u64,
    cursor: Cursor,
    hook: Hook,
}

impl Rows for FakeRows {
    fn read(&mut self) -> Result<Sample, PortError> {
        let rows = ROWS[self.domain as usize];
        let Cursor { epoch: pass, index } = self.cursor;
        (self.hook)("read", self.domain * 1000 + pass * rows + index)?;
        self.cursor = self.cursor.advance(rows, 1);
        let row = ddk_order::Permutation::new(rows, 1, "fake", &[self.domain, pass]).at(index);
        let length = 4 + row % 3;
        let spans = vec![Span {
            document: row,
            offset: 0,
            tokens: length,
        }];
        Ok(Sample {
            domain: self.domain as u16,
            epoch: pass,
            index,
            sequence: Sequence {
                number: row,
                spans,
                ..vec![7; length as usize].into()
            },
        })
    }
}

/// Watches a run and sends it commands after steps.
#[derive(Default)]
pub struct Watcher {
    pub events: Mutex<Vec<EventLine>>,
    pub answers: Mutex<Vec<control::Outcome>>,
    telling: Mutex<Option<Telling>>,
    pub steps: AtomicU64,
}

/// The commands to send to a run, and when.
struct Telling {
    run: RunHandle,
    stop_after: Option<u64>,
    commands: Vec<(u64, Command)>,
    runtime: tokio::runtime::Handle,
}

impl Telling {
    /// Sends a command. After this returns, the student sees it at its next boundary. The answer comes later.
    fn tell(&self, command: Command, watcher: &Arc<Watcher>) {
        let (run, watcher) = (self.run.clone(), watcher.clone());
        let mut asking = Box::pin(async move {
            let answer = run.ask(command, Source::Socket).await;
            watcher.answers.lock().unwrap().push(answer);
        });
        self.runtime.block_on(async {
            // Polling once sends the command. The status request is answered only after the command was passed on.
            let is_answered = tokio::select! {
                biased;
                () = &mut asking => true,
                () = std::future::ready(()) => false,
            };
            if !is_answered {
                tokio::spawn(asking);
                let _ = self.run.ask(Command::Status, Source::Socket).await;
            }
        });
    }
}

impl Watcher {
    /// Sends a command at once, from any thread of the run.
    pub fn tell(self: &Arc<Self>, command: Command) {
        if let Some(telling) = &*self.telling.lock().unwrap() {
            telling.tell(command, self);
        }
    }
}

/// The run's observer; it shares the watcher with the test.
pub struct Watching(pub Arc<Watcher>);

impl Observer for Watching {
    fn on_step(&self, step: &StepReport<'_>) {
        self.0.steps.fetch_add(1, Ordering::Relaxed);
        let telling = self.0.telling.lock().unwrap();
        let Some(telling) = &*telling else {
            return;
        };
        for (_, command) in telling
            .commands
            .iter()
            .filter(|(after, _)| *after == step.line.step)
        {
            telling.tell(command.clone(), &self.0);
        }
        if telling.stop_after == Some(step.line.step) {
            telling.tell(Command::Stop, &self.0);
            dawdle(step.line.step);
        }
    }

    fn on_mixture(&self, _: &MixtureLine) {}

    fn on_progress(&self, _: &Progress) {}

    fn on_event(&self, event: &EventLine) {
        self.0.events.lock().unwrap().push(event.clone());
    }
}

/// Keeps a thread busy without a clock; `seed` determines how long.
pub fn dawdle(seed: u64) {
    for _ in 0..mix(seed, 5) % 400 {
        std::thread::yield_now();
    }
}
