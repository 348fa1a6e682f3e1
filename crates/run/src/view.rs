//! A view of a run, read incrementally from its folder while the run grows.
//!
//! The page, the terminal, the report and comparisons read a run only through [`RunView`]. Its memory is bounded,
//! however long the run is: at most 1,024 points, 1,024 intervals and 250 events.

mod events;
mod limits;
mod mixtures;
mod part;
mod scalars;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use self::{
    events::EventLog,
    limits::Limits,
    mixtures::MixtureSeries,
    part::{Gather, Part, finite, keep},
    scalars::Mean,
};
pub use self::{
    events::Saved,
    mixtures::{Domain, IntervalRecord},
    scalars::{Scalar, ScalarSeries, Steps},
};
use crate::{
    PhaseSeconds, RunFolder, read,
    records::{
        DomainSummary, EventKind, EventLine, StepRecord, StopReason, Summary, seconds_since_1970,
    },
};

/// Number of recent steps that current values are averaged over.
const RECENT: usize = 50;
/// The subfolder of a run's folder that holds its preliminary runs.
const STAGES: &str = "phases";
/// Number of refreshes that the pace is measured over: ten minutes at one per second.
const LOOKS: usize = 600;

/// The status of a run: `/api/status`. Numbers that are not finite or not known are absent or `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Name of the run, which is the name of its folder.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Why it finished, if it has.
    pub stop_reason: Option<StopReason>,
    /// The last optimizer step.
    pub step: u64,
    /// The step at which it ends, if that is known.
    pub step_limit: Option<u64>,
    /// The last interval that has a mixture.
    pub interval: Option<u64>,
    /// Tokens trained on.
    pub tokens: u64,
    /// Tokens at which it ends, if there is such a limit.
    pub token_limit: Option<u64>,
    /// Seconds since the first start, including pauses; for a finished run, its total time.
    pub seconds: Option<f64>,
    /// Estimated seconds until the end.
    pub seconds_left: Option<f64>,
    /// Means of the last 50 steps; the learning rate is that of the last step.
    pub scalars: BTreeMap<Scalar, f64>,
    /// Mean seconds of the last 50 steps by phase.
    pub phases: PhaseSeconds,
    /// Mean over the domains of ln(student's perplexity / teacher's) at the last evaluation, nats per token.
    pub mean_gap: Option<f64>,
    /// The mean gap before the first step.
    pub mean_gap_at_start: Option<f64>,
    /// The domain with the largest gap.
    pub worst_domain: Option<String>,
    /// The step of the last evaluation.
    pub evaluated_at_step: Option<u64>,
    /// By domain, in the order of their names.
    pub domains: Vec<Domain>,
    /// Its preliminary runs in order: DoReMi's reference and proxy, TED's filters.
    pub stages: Vec<Stage>,
    /// Number of incidents by kind.
    pub incidents: BTreeMap<EventKind, u64>,
    /// The last checkpoint.
    pub saved: Option<Saved>,
    /// What cannot be read in the run's files.
    pub problems: Vec<String>,
    /// How often each part of the view has changed.
    pub revisions: Revisions,
}

/// A preliminary run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// `reference`, `proxy` or `filters`.
    pub name: String,
    /// Its state.
    pub state: State,
    /// Its last step.
    pub step: u64,
    /// The step at which it ends.
    pub step_limit: Option<u64>,
}

impl fmt::Display for Stage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {}, step {}",
            self.name, self.state, self.step
        )?;
        self.step_limit
            .map_or(Ok(()), |limit| write!(formatter, " of {limit}"))
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}: {}, step {}",
            self.name, self.state, self.step
        )?;
        if let Some(limit) = self.step_limit {
            write!(formatter, " of {limit}")?;
        }
        if let Some(seconds) = self.seconds_left {
            write!(formatter, ", about {} left", duration(seconds))?;
        }
        Ok(())
    }
}

/// Counters that rise when a part of the view changes, so that a client requests only what is new.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revisions {
    /// Counts changes of the steps and their charts.
    pub steps: u64,
    /// Counts changes of the mixtures and their charts.
    pub mixture: u64,
    /// Counts changes of the events.
    pub events: u64,
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its process builds models and workers.
    Starting,
    /// It trains.
    Running,
    /// It is paused.
    Paused,
    /// Its process rewinds to the last checkpoint.
    Recovering,
    /// The last step is done, or the run was told to stop: it exports the student and writes the report.
    Ending,
    /// It has finished and has a summary.
    Finished,
    /// It has not finished, and no process works on it. The last process was told to stop, or was killed.
    Stopped,
    /// It has not finished, and its last process ended with an error.
    Failed,
}

impl State {
    /// Whether no process works on the run.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Stopped | Self::Failed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// The intervals of a run and its last evaluation: `/api/mixture`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Mixture {
    /// At most 1,024 intervals, evenly spaced, and the last.
    pub intervals: Vec<IntervalRecord>,
    /// Results of a finished run by domain.
    pub after: Option<BTreeMap<String, DomainSummary>>,
}

/// A run's folder and what has been read from it.
#[derive(Debug)]
pub struct RunView {
    folder: PathBuf,
    steps: Part<StepLog>,
    mixtures: Part<MixtureSeries>,
    events: Part<EventLog>,
    limits: Option<Limits>,
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

/// Formats a duration in its two largest units.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0);
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds < 9.95 => format!("{seconds:.1} s"),
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, _) => format!("{minutes} min {} s", whole % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
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
            limits: None,
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
        if self.limits.is_none() {
            self.limits = Limits::read(&self.folder)
                .map_err(|problem| self.problems.push(format!("config.toml: {problem}")))
                .ok();
        }
        self.refresh_stages();
        let before = self.summary.take();
        let is_there = self.folder.join("summary.json").exists();
        self.summary = is_there
            .then(|| read::summary(&self.folder))
            .and_then(|summary| {
                summary
                    .map_err(|error| self.problems.push(format!("summary.json: {error}")))
                    .ok()
            });
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
                stage
                    .or_insert_with_key(|folder| Self::new(folder))
                    .refresh();
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
            step_limit: stage.limits.unwrap_or_default().steps,
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
        let domains = self.summary.as_ref().map(|summary| summary.domains.clone());
        Mixture {
            intervals: self.mixtures.gathered.shown().cloned().collect(),
            after: domains,
        }
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
        let worst = domains.iter().filter(|domain| domain.gap.is_some());
        let worst = worst.max_by(|a, b| {
            a.gap
                .partial_cmp(&b.gap)
                .unwrap_or(std::cmp::Ordering::Equal)
        });
        let last = mixtures.last().map(|interval| &interval.mixture);
        RunStatus {
            name: self.name(),
            state,
            stop_reason: summary.map(|summary| summary.stop_reason),
            step: self.step(),
            step_limit: limits.steps,
            interval: last.map(|line| line.interval),
            tokens: self.steps.gathered.tokens,
            token_limit: limits.tokens,
            seconds: self.seconds(state),
            seconds_left: (!state.is_ended())
                .then(|| self.seconds_left(&limits))
                .flatten(),
            scalars: self.recent_scalars(),
            phases: self.recent_phases(),
            mean_gap: mean(|domain| domain.gap),
            mean_gap_at_start: mean(|domain| domain.gap_at_start),
            worst_domain: worst.map(|domain| domain.name.clone()),
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
            },
        }
    }

    fn state(&self, process: Option<State>) -> State {
        let events = &self.events.gathered;
        match process {
            _ if self.summary.is_some() => State::Finished,
            Some(state) => state,
            None if RunFolder::holder(&self.folder).is_none() => {
                if events.has_failed {
                    State::Failed
                } else {
                    State::Stopped
                }
            }
            None if events.is_paused => State::Paused,
            None => State::Running,
        }
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
        let left = limits.steps.map(steps).into_iter();
        let left = left.chain(limits.tokens.map(by_tokens)).reduce(f64::min)?;
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
