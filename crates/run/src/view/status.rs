//! The status of a run.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use strum::Display;

use super::{Domain, Fact, Progress, Saved, Scalar, rough};
use crate::{
    PhaseSeconds,
    records::{EventKind, StopReason},
};

/// The status of a run: `/api/status`. Numbers that are not finite or not known are absent or `null`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStatus {
    /// Name of the run, which is the name of its folder.
    pub name: String,
    /// Its models and method, in words.
    #[serde(default)]
    pub about: Vec<Fact>,
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
    /// What the run's process is doing. Only that process knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity: Option<Progress>,
    /// When it first started, seconds since 1970.
    #[serde(default)]
    pub started: Option<f64>,
    /// If it has ended, the time of its last event, seconds since 1970.
    #[serde(default)]
    pub ended: Option<f64>,
    /// Means of the last 50 steps; the learning rate is that of the last step.
    pub scalars: BTreeMap<Scalar, f64>,
    /// Number of steps that the means are over: 50, or fewer at first.
    #[serde(default)]
    pub averaged_steps: u64,
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
        write!(formatter, "{}: {}, ", self.name, self.state)?;
        write_step(formatter, self.step, self.step_limit)
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}, ", self.name, self.state)?;
        write_step(formatter, self.step, self.step_limit)?;
        if let Some(activity) = &self.activity {
            return write!(formatter, "; {}", activity.line(self.seconds_left));
        }
        self.seconds_left.map_or(Ok(()), |seconds| {
            write!(formatter, ", about {} left", rough(seconds))
        })
    }
}

fn write_step(formatter: &mut fmt::Formatter<'_>, step: u64, limit: Option<u64>) -> fmt::Result {
    write!(formatter, "step {step}")?;
    limit.map_or(Ok(()), |limit| write!(formatter, " of {limit}"))
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
    /// Counts changes of the texts.
    #[serde(default)]
    pub texts: u64,
}

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Display)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
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

/// A number with its noun, which gets an `s` unless the number is 1: `1 step`, `2 steps`.
pub fn counted(count: u64, noun: &str) -> String {
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{ending}")
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
