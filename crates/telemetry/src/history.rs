//! A run as its folder tells of it: read on whenever somebody looks, in a bounded amount of memory.

mod limits;
mod mixtures;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    time::Instant,
};

use ddk_files::{Found, Tail};
use ddk_run::{
    RunFolder,
    read::summary,
    records::{EventKind, EventLine, StepLine, Summary, seconds_since_1970},
};
use serde::de::DeserializeOwned;

use self::{limits::Limits, mixtures::Mixtures};
use crate::{
    api::{Domain, Events, Losses, Mixture, RunReply, Saved, State, Status, Steps, finite},
    series::{Mean, Series, Told},
};

/// Steps that a current value is the mean of.
const RECENT: usize = 50;
/// Events that are kept; saves are routine and would drive out the others.
const EVENTS: usize = 200;
const SAVES: usize = 50;
/// Looks that the pace is measured over; at one a second, ten minutes.
const LOOKS: usize = 600;

/// A run's folder, and what has been read of it.
#[derive(Debug)]
pub struct History {
    folder: PathBuf,
    run: Tail,
    mixture: Tail,
    events: Tail,
    series: Series,
    recent: VecDeque<StepLine>,
    tokens: u64,
    mixtures: Mixtures,
    /// Raised by each line of `mixture.jsonl`.
    mixture_revision: u64,
    incidents: VecDeque<EventLine>,
    saves: VecDeque<EventLine>,
    counts: BTreeMap<EventKind, u64>,
    first_event: Option<f64>,
    last_event: Option<f64>,
    /// Whether the process that worked on it last said that it failed.
    has_failed: bool,
    limits: Option<Limits>,
    summary: Option<Summary>,
    /// When somebody looked, and the step then.
    looks: VecDeque<(Instant, u64)>,
    problems: BTreeMap<String, String>,
    bad_lines: BTreeMap<&'static str, String>,
}

impl History {
    /// Of a folder; nothing is read yet.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            run: Tail::new(folder.join("run.jsonl")),
            mixture: Tail::new(folder.join("mixture.jsonl")),
            events: Tail::new(folder.join("events.jsonl")),
            series: Series::default(),
            recent: VecDeque::new(),
            tokens: 0,
            mixtures: Mixtures::default(),
            mixture_revision: 0,
            incidents: VecDeque::new(),
            saves: VecDeque::new(),
            counts: BTreeMap::new(),
            first_event: None,
            last_event: None,
            has_failed: false,
            limits: None,
            summary: None,
            looks: VecDeque::new(),
            problems: BTreeMap::new(),
            bad_lines: BTreeMap::new(),
        }
    }

    /// Reads what has been written since. What cannot be read is told as a problem of the run, not of who looks.
    pub fn refresh(&mut self) {
        self.problems.clear();
        self.read_steps();
        self.read_mixtures();
        self.read_events();
        if self.limits.is_none() {
            match Limits::read(&self.folder) {
                Ok(limits) => self.limits = Some(limits),
                Err(problem) => self.problem("config.toml", problem),
            }
        }
        self.summary = if self.folder.join("summary.json").exists() {
            match summary(&self.folder) {
                Ok(summary) => Some(summary),
                Err(error) => {
                    self.problem("summary.json", error.to_string());
                    None
                }
            }
        } else {
            None
        };
        self.looks.push_back((Instant::now(), self.step()));
        // A run that went back is measured anew.
        if self.looks.front().is_some_and(|look| look.1 > self.step()) {
            self.looks.clear();
        }
        if self.looks.len() > LOOKS {
            self.looks.pop_front();
        }
    }

    fn problem(&mut self, file: &str, problem: String) {
        self.problems.insert(file.to_owned(), problem);
    }

    fn read_steps(&mut self) {
        let (series, recent, tokens) = (&mut self.series, &mut self.recent, &mut self.tokens);
        let mut bad = Bad::default();
        let read = self.run.read(|found| match found {
            Found::Anew => {
                bad = Bad::anew();
                series.clear();
                recent.clear();
                *tokens = 0;
            }
            Found::Line(line) => {
                if let Some(line) = parsed::<StepLine>(line, &mut bad) {
                    series.push(&line);
                    *tokens += line.tokens;
                    keep(recent, line, RECENT);
                }
            }
        });
        self.note("run.jsonl", read, bad);
    }

    fn read_mixtures(&mut self) {
        let (mixtures, revision) = (&mut self.mixtures, &mut self.mixture_revision);
        let mut bad = Bad::default();
        let read = self.mixture.read(|found| {
            *revision += 1;
            match found {
                Found::Anew => {
                    bad = Bad::anew();
                    *mixtures = Mixtures::default();
                }
                Found::Line(line) => mixtures.push(line, &mut bad),
            }
        });
        self.note("mixture.jsonl", read, bad);
    }

    fn read_events(&mut self) {
        let (incidents, saves) = (&mut self.incidents, &mut self.saves);
        let (counts, first, last, has_failed) = (
            &mut self.counts,
            &mut self.first_event,
            &mut self.last_event,
            &mut self.has_failed,
        );
        let mut bad = Bad::default();
        let read = self.events.read(|found| match found {
            Found::Anew => {
                bad = Bad::anew();
                incidents.clear();
                saves.clear();
                counts.clear();
                (*first, *last, *has_failed) = (None, None, false);
            }
            Found::Line(line) => {
                if let Some(line) = parsed::<EventLine>(line, &mut bad) {
                    *counts.entry(line.kind).or_default() += 1;
                    first.get_or_insert(line.time);
                    *last = Some(line.time);
                    match line.kind {
                        EventKind::Failed => *has_failed = true,
                        EventKind::Started | EventKind::Resumed | EventKind::Stopped => {
                            *has_failed = false;
                        }
                        _ => {}
                    }
                    match line.kind {
                        EventKind::Saved => keep(saves, line, SAVES),
                        _ => keep(incidents, line, EVENTS),
                    }
                }
            }
        });
        self.note("events.jsonl", read, bad);
    }

    /// A line that is bad is read once, and stays a problem until the file is read anew.
    fn note(&mut self, file: &'static str, read: std::io::Result<()>, bad: Bad) {
        if bad.anew {
            self.bad_lines.remove(file);
        }
        if let Some(line) = bad.line {
            self.bad_lines.entry(file).or_insert(line);
        }
        let problem = read.err().map(|error| error.to_string());
        if let Some(problem) = problem.or_else(|| self.bad_lines.get(file).cloned()) {
            self.problem(file, problem);
        }
    }

    fn step(&self) -> u64 {
        self.recent.back().map_or(0, |line| line.step)
    }

    /// How the run stands. `state`: what is known of its process.
    pub fn status(&self, process: Option<State>) -> Status {
        let state = match (&self.summary, process) {
            (Some(_), _) => State::Finished,
            (None, Some(state)) => state,
            (None, None) => match RunFolder::holder(&self.folder) {
                Some(_) => State::Running,
                None if self.has_failed => State::Failed,
                None => State::Stopped,
            },
        };
        let limits = self.limits.unwrap_or_default();
        let step = self.step();
        let domains = self.domains();
        let mean = |of: fn(&Domain) -> Option<f64>| {
            let mut mean = Mean::default();
            domains
                .iter()
                .filter_map(of)
                .for_each(|value| mean.add(value));
            mean.get()
        };
        let last = self.mixtures.last();
        Status {
            name: self.folder.file_name().map_or_else(
                || self.folder.display().to_string(),
                |name| name.to_string_lossy().into_owned(),
            ),
            state,
            stop_reason: self.summary.as_ref().map(|summary| summary.stop_reason),
            step,
            step_limit: limits.steps,
            interval: last.map(|line| line.interval),
            tokens: self.tokens,
            token_limit: limits.tokens,
            seconds: self.seconds(state),
            seconds_left: match state {
                _ if state.is_ended() => None,
                _ => self.seconds_left(&limits),
            },
            tokens_per_second: self.recent_rate(),
            losses: self.losses(),
            phases: self.phases(),
            ratio: mean(|domain| domain.ratio),
            ratio_at_start: mean(|domain| domain.ratio_at_start),
            evaluated_at_step: match &self.summary {
                Some(summary) => Some(summary.steps),
                None => last.map(|line| line.evaluated_at_step),
            },
            domains,
            events: self.counts.clone(),
            saved: self.saves.back().map(|event| Saved {
                step: event.step,
                time: event.time,
            }),
            workers: Vec::new(),
            queues: Vec::new(),
            problems: self
                .problems
                .iter()
                .map(|(file, problem)| format!("{file}: {problem}"))
                .collect(),
        }
    }

    /// `/api/run` without lanes.
    pub fn reply(&self, process: Option<State>) -> RunReply {
        RunReply {
            status: self.status(process),
            steps: self.series.all(),
            lanes: None,
        }
    }

    /// The steps that somebody has not been told of.
    pub(crate) fn news(&self, told: &mut Told) -> Option<Steps> {
        self.series.news(told)
    }

    /// `/api/mixture`.
    pub fn mixture(&self) -> Mixture {
        self.mixtures.reply(self.summary.as_ref())
    }

    /// Another number where the mixture, or whether the run has ended, is another.
    pub(crate) fn mixture_revision(&self) -> u64 {
        2 * self.mixture_revision + u64::from(self.summary.is_some())
    }

    /// `/api/events`.
    pub fn events(&self) -> Events {
        let mut events: Vec<EventLine> =
            self.incidents.iter().chain(&self.saves).cloned().collect();
        events.sort_by(|a, b| a.time.total_cmp(&b.time));
        Events { events }
    }

    /// How many events there were.
    pub(crate) fn event_count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Since the first start; a run that has ended or stopped no longer ages.
    fn seconds(&self, state: State) -> Option<f64> {
        if let Some(summary) = &self.summary {
            return Some(summary.seconds);
        }
        let until = match state {
            State::Stopped | State::Failed => self.last_event?,
            _ => seconds_since_1970(),
        };
        Some((until - self.first_event?).max(0.0))
    }

    /// By the pace seen while somebody looked, evaluations and saves included; before that was long enough,
    /// by the phases of the last steps.
    fn seconds_left(&self, limits: &Limits) -> Option<f64> {
        let tokens = self.recent.iter().map(|line| line.tokens).sum::<u64>() as f64;
        let tokens_a_step = tokens / self.recent.len().max(1) as f64;
        let by_steps = limits
            .steps
            .map(|limit| limit.saturating_sub(self.step()) as f64);
        let by_tokens = limits
            .tokens
            .map(|limit| limit.saturating_sub(self.tokens) as f64 / tokens_a_step);
        let steps = match (by_steps, by_tokens) {
            (Some(steps), Some(tokens)) => steps.min(tokens),
            (steps, tokens) => steps.or(tokens)?,
        };
        finite(steps * self.seconds_a_step()?)
    }

    fn seconds_a_step(&self) -> Option<f64> {
        if let (Some(first), Some(last)) = (self.looks.front(), self.looks.back()) {
            let seconds = (last.0 - first.0).as_secs_f64();
            if seconds >= 30.0 && last.1 > first.1 {
                return Some(seconds / (last.1 - first.1) as f64);
            }
        }
        let seconds: f64 = self
            .recent
            .iter()
            .flat_map(|line| line.seconds.values())
            .sum();
        (!self.recent.is_empty()).then(|| seconds / self.recent.len() as f64)
    }

    fn recent_rate(&self) -> Option<f64> {
        let tokens: u64 = self.recent.iter().map(|line| line.tokens).sum();
        let seconds: f64 = self
            .recent
            .iter()
            .flat_map(|line| line.seconds.values())
            .sum();
        finite(tokens as f64 / seconds)
    }

    fn losses(&self) -> Losses {
        let mean = |of: fn(&StepLine) -> f64| {
            let mut mean = Mean::default();
            self.recent.iter().for_each(|line| mean.add(of(line)));
            mean.get()
        };
        Losses {
            loss: mean(|line| line.loss),
            ce: mean(|line| line.ce),
            kl: mean(|line| line.kl),
            gradient_norm: mean(|line| line.grad_norm),
            learning_rate: self.recent.back().map(|line| line.learning_rate),
        }
    }

    fn phases(&self) -> BTreeMap<String, f64> {
        let mut phases: BTreeMap<String, f64> = BTreeMap::new();
        for (phase, seconds) in self.recent.iter().flat_map(|line| &line.seconds) {
            *phases.entry(phase.to_string()).or_default() += seconds / self.recent.len() as f64;
        }
        phases
    }

    fn domains(&self) -> Vec<Domain> {
        let mut domains = self.mixtures.domains();
        if let Some(summary) = &self.summary {
            for domain in &mut domains {
                let Some(after) = summary.domains.get(&domain.name) else {
                    continue;
                };
                domain.student_perplexity = finite(after.student_perplexity_after);
                domain.ratio = finite(after.ratio_after);
                domain.token_share = finite(after.token_share);
            }
        }
        domains
    }
}

/// Adds to a list of the last so many.
fn keep<T>(list: &mut VecDeque<T>, item: T, at_most: usize) {
    if list.len() >= at_most {
        list.pop_front();
    }
    list.push_back(item);
}

/// What was wrong with a file's new lines.
#[derive(Default)]
struct Bad {
    /// They are all of the file.
    anew: bool,
    /// The first line that is not what it should be.
    line: Option<String>,
}

impl Bad {
    /// Nothing yet, of a file that is read from its start.
    fn anew() -> Self {
        Self {
            anew: true,
            line: None,
        }
    }
}

/// A line's record; the first that is none is remembered.
fn parsed<T: DeserializeOwned>(line: &[u8], bad: &mut Bad) -> Option<T> {
    match serde_json::from_slice(line) {
        Ok(record) => Some(record),
        Err(error) => {
            bad.line
                .get_or_insert_with(|| format!("a line is not the record it should be: {error}"));
            None
        }
    }
}

#[cfg(test)]
mod tests;
