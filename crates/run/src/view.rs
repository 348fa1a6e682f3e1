//! A view of a run, read incrementally from its folder while the run grows.
//!
//! The page, the terminal, the report and comparisons read a run only through [`RunView`]. Its memory is bounded,
//! however long the run is: at most 1,024 points, 1,024 intervals and 250 events.

mod about;
mod events;
mod limits;
mod mixtures;
mod part;
mod progress;
mod scalars;
mod status;
mod texts;

use std::{
    collections::{BTreeMap, VecDeque},
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

pub use self::{
    about::Fact,
    events::Saved,
    mixtures::{Domain, IntervalRecord, Mixture},
    progress::{Progress, rough},
    scalars::{Scalar, Steps},
    status::{Revisions, RunStatus, Stage, State, counted, duration},
    texts::Texts,
};
use self::{
    events::EventLog,
    limits::Limits,
    mixtures::MixtureSeries,
    part::{Gather, Part, finite, keep},
    scalars::{Mean, ScalarSeries},
};
use crate::{
    OVERRIDES, PhaseSeconds, RunFolder, read,
    records::{EventKind, EventLine, StepRecord, Summary, seconds_since_1970},
};

/// Number of recent steps that current values are averaged over.
const RECENT: usize = 50;
/// The subfolder of a run's folder that holds its preliminary runs.
const STAGES: &str = "phases";
/// Number of refreshes that the pace is measured over: ten minutes at one per second.
const LOOKS: usize = 600;

/// A run's folder and what has been read from it.
#[derive(Debug)]
pub struct RunView {
    folder: PathBuf,
    steps: Part<StepLog>,
    mixtures: Part<MixtureSeries>,
    events: Part<EventLog>,
    texts: Part<Texts>,
    limits: Option<Limits>,
    about: Vec<Fact>,
    /// Length of `overrides.jsonl` when `about` was read.
    overrides_length: Option<u64>,
    summary: Option<Summary>,
    stages: BTreeMap<PathBuf, Self>,
    /// The times of the last refreshes, and the step at each.
    looks: VecDeque<(Instant, u64)>,
    problems: Vec<String>,
}

/// Data gathered from `run.jsonl`.
#[derive(Debug, Default)]
struct StepLog {
    series: ScalarSeries,
    recent: VecDeque<StepRecord>,
    phases: PhaseSeconds,
    tokens: u64,
}

impl Gather for StepLog {
    type Record = StepRecord;

    fn add(&mut self, line: StepRecord) {
        self.series.push(&line);
        self.tokens += line.tokens;
        add_seconds(&mut self.phases, &line.seconds, 1.0);
        keep(&mut self.recent, line, RECENT);
    }
}

fn add_seconds(sums: &mut PhaseSeconds, seconds: &PhaseSeconds, weight: f64) {
    for (phase, seconds) in seconds {
        *sums.entry(*phase).or_default() += weight * seconds;
    }
}

impl RunView {
    /// Creates a view of the run in `folder`. Reads nothing yet.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            steps: Part::of(folder, "run.jsonl"),
            mixtures: Part::of(folder, "mixture.jsonl"),
            events: Part::of(folder, "events.jsonl"),
            texts: Part::of(folder, "texts.jsonl"),
            limits: None,
            about: Vec::new(),
            overrides_length: None,
            summary: None,
            stages: BTreeMap::new(),
            looks: VecDeque::new(),
            problems: Vec::new(),
        }
    }

    /// Creates a view of the run in `folder` and reads its files.
    pub fn read(folder: &Path) -> Self {
        let mut view = Self::new(folder);
        view.refresh();
        view
    }

    /// Reads what is new. If a file cannot be read, lists it in [`Self::problems`] instead of failing.
    pub fn refresh(&mut self) {
        self.problems.clear();
        self.problems.extend(self.steps.refresh());
        self.problems.extend(self.mixtures.refresh());
        self.problems.extend(self.events.refresh());
        self.problems.extend(self.texts.refresh());
        // A process that has just started has not written its settings yet.
        if self.limits.is_none() && RunFolder::holds_a_run(&self.folder) {
            self.limits = Limits::read(&self.folder)
                .map_err(|problem| self.problems.push(format!("config.toml: {problem}")))
                .ok();
            self.about = about::read(&self.folder);
        }
        let overrides = fs::metadata(self.folder.join(OVERRIDES)).ok();
        let length = overrides.map(|overrides| overrides.len());
        if length != self.overrides_length {
            self.overrides_length = length;
            self.about = about::read(&self.folder);
        }
        self.refresh_stages();
        let before = self.summary.take();
        if self.folder.join("summary.json").exists() {
            self.summary = read::summary(&self.folder)
                .map_err(|error| self.problems.push(format!("summary.json: {error}")))
                .ok();
        }
        if self.summary != before {
            self.mixtures.revision += 1;
        }
        // After a rewind, start measuring the pace again.
        if self.looks.back().is_some_and(|look| look.1 > self.step()) {
            self.looks.clear();
        }
        let look = (Instant::now(), self.step());
        keep(&mut self.looks, look, LOOKS);
    }

    fn refresh_stages(&mut self) {
        let folders = fs::read_dir(self.folder.join(STAGES)).into_iter();
        for folder in folders.flatten().flatten().map(|entry| entry.path()) {
            if RunFolder::holds_a_run(&folder) {
                let stage = self.stages.entry(folder);
                let stage = stage.or_insert_with_key(|folder| Self::new(folder));
                stage.refresh();
            }
        }
    }

    /// The preliminary runs, in the order in which they started.
    fn stages(&self) -> Vec<Stage> {
        let mut stages: Vec<&Self> = self.stages.values().collect();
        let began = |stage: &Self| stage.events.gathered.first_time.unwrap_or(f64::INFINITY);
        stages.sort_by(|a, b| began(a).total_cmp(&began(b)));
        let stage = |stage: &Self| Stage {
            name: stage.name(),
            state: stage.state(None),
            step: stage.step(),
            step_limit: stage.limits.unwrap_or_default().steps(),
        };
        stages.into_iter().map(stage).collect()
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Name of the run, which is the name of its folder.
    pub fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or(self.folder.as_os_str());
        name.to_string_lossy().into_owned()
    }

    /// The last optimizer step; 0 before the first.
    pub fn step(&self) -> u64 {
        self.recent().back().map_or(0, |line| line.step)
    }

    /// `summary.json` of a finished run.
    pub fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    /// The models and the method, as `config.toml` names them.
    pub fn about(&self) -> &[Fact] {
        &self.about
    }

    /// The files that cannot be read, each with the reason.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// Total seconds of all steps by phase.
    pub fn phases(&self) -> &PhaseSeconds {
        &self.steps.gathered.phases
    }

    /// The scalars of all steps.
    pub fn steps(&self) -> Steps {
        self.steps.gathered.series.columns()
    }

    /// Mixtures and evaluations.
    pub fn mixture(&self) -> Mixture {
        let after = self.summary.as_ref().map(|summary| summary.domains.clone());
        Mixture {
            intervals: self.mixtures.gathered.intervals.clone(),
            after,
        }
    }

    /// What the models wrote after the prompts.
    pub fn texts(&self) -> Texts {
        self.texts.gathered.clone()
    }

    /// The last 50 saves and the last 200 other events, in chronological order.
    pub fn events(&self) -> Vec<EventLine> {
        self.events.gathered.shown()
    }

    /// Number of incidents by kind.
    pub fn incidents(&self) -> BTreeMap<EventKind, u64> {
        self.events.gathered.incidents()
    }

    /// The status of the run. `process` is the state that the run's own process knows, if that process is the caller.
    pub fn status(&self, process: Option<State>) -> RunStatus {
        let summary = self.summary.as_ref();
        let events = &self.events.gathered;
        let state = self.state(process);
        let limits = self.limits.unwrap_or_default();
        let mixtures = &self.mixtures.gathered;
        let domains = mixtures.domains(summary);
        let mean = |of: fn(&Domain) -> Option<f64>| Mean::over(domains.iter().filter_map(of));
        let gaps = domains
            .iter()
            .filter_map(|domain| Some((domain.gap?, domain)));
        let worst = gaps.max_by(|(a, _), (b, _)| a.total_cmp(b));
        let last = mixtures.intervals.last().map(|interval| &interval.mixture);
        RunStatus {
            name: self.name(),
            about: self.about.clone(),
            state,
            stop_reason: summary.map(|summary| summary.stop_reason),
            step: self.step(),
            step_limit: limits.steps(),
            interval: last.map(|line| line.interval),
            tokens: self.steps.gathered.tokens,
            token_limit: limits.tokens(),
            seconds: self.seconds(state),
            seconds_left: (!state.is_ended())
                .then(|| self.seconds_left(&limits))
                .flatten(),
            activity: None,
            started: events.first_time,
            ended: events.last_time.filter(|_| state.is_ended()),
            scalars: self.recent_scalars(),
            averaged_steps: self.recent().len() as u64,
            phases: self.recent_phases(),
            mean_gap: mean(|domain| domain.gap),
            mean_gap_at_start: mean(|domain| domain.gap_at_start),
            worst_domain: worst.map(|(_, domain)| domain.name.clone()),
            evaluated_at_step: summary
                .map(|summary| summary.steps)
                .or(last.map(|line| line.evaluated_at_step)),
            domains,
            stages: self.stages(),
            incidents: events.incidents(),
            saved: events.saved(),
            problems: self.problems.clone(),
            revisions: Revisions {
                steps: self.steps.revision,
                mixture: self.mixtures.revision,
                events: self.events.revision,
                texts: self.texts.revision,
            },
        }
    }

    fn state(&self, process: Option<State>) -> State {
        let events = &self.events.gathered;
        if self.summary.is_some() {
            return State::Finished;
        }
        process.unwrap_or_else(|| match RunFolder::holder(&self.folder) {
            Some(_) if events.is_paused => State::Paused,
            Some(_) => State::Running,
            None if events.has_failed => State::Failed,
            None => State::Stopped,
        })
    }

    fn recent(&self) -> &VecDeque<StepRecord> {
        &self.steps.gathered.recent
    }

    fn recent_scalars(&self) -> BTreeMap<Scalar, f64> {
        let mut scalars = scalars::means(self.recent());
        if let Some(line) = self.recent().back() {
            scalars.insert(Scalar::LearningRate, line.learning_rate);
        }
        scalars
    }

    fn recent_phases(&self) -> PhaseSeconds {
        let weight = 1.0 / self.recent().len() as f64;
        let mut phases = PhaseSeconds::new();
        for line in self.recent() {
            add_seconds(&mut phases, &line.seconds, weight);
        }
        phases.sort_keys();
        phases
    }

    /// Seconds since the first start; for a run that has ended, until its end.
    fn seconds(&self, state: State) -> Option<f64> {
        let events = &self.events.gathered;
        if let Some(summary) = &self.summary {
            return Some(summary.seconds);
        }
        let until = if state.is_ended() {
            events.last_time?
        } else {
            seconds_since_1970()
        };
        Some((until - events.first_time?).max(0.0))
    }

    fn seconds_left(&self, limits: &Limits) -> Option<f64> {
        let tokens = self.recent().iter().map(|line| line.tokens).sum::<u64>() as f64;
        let tokens_per_step = tokens / self.recent().len().max(1) as f64;
        let steps = |limit: u64| limit.saturating_sub(self.step()) as f64;
        let by_tokens =
            |limit: u64| limit.saturating_sub(self.steps.gathered.tokens) as f64 / tokens_per_step;
        let left = limits.steps().map(steps).into_iter();
        let left = left
            .chain(limits.tokens().map(by_tokens))
            .reduce(f64::min)?;
        finite(left * self.seconds_per_step()?)
    }

    /// The pace over the last refreshes, including evaluations and saves. Until these cover enough time, the pace of
    /// the last steps.
    fn seconds_per_step(&self) -> Option<f64> {
        if let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) {
            let seconds = (last.0 - first.0).as_secs_f64();
            if seconds >= 30.0 && last.1 > first.1 {
                return Some(seconds / (last.1 - first.1) as f64);
            }
        }
        let phases = self.recent_phases();
        (!self.recent().is_empty()).then(|| phases.values().sum())
    }
}

#[cfg(test)]
mod tests;
