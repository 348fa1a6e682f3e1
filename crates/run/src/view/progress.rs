//! What a process is doing at the moment, and how far it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::duration;

/// The phase that a run is in, such as an evaluation, and its progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What the phase is: `first evaluation of the student`, …
    pub phase: String,
    /// What is counted: `documents`, …; empty if nothing is.
    pub unit: String,
    /// How many are done.
    pub done: u64,
    /// How many there are; 0 if that is unknown.
    pub total: u64,
    /// Seconds since the phase began.
    #[serde(default)]
    pub seconds: f64,
    /// Estimated from the pace so far, or from what such a phase needed before; `null` if neither is known.
    pub seconds_left: Option<f64>,
}

impl Progress {
    /// The phase and its count: `saving a checkpoint: 12 of 48 MB, 25%`.
    pub fn count(&self) -> String {
        let Self {
            phase,
            unit,
            done,
            total,
            ..
        } = self;
        match (unit.as_str(), *total) {
            ("", _) => phase.clone(),
            (_, 0) => format!("{phase}: {done} {unit}"),
            (_, all) => {
                let unit = match all {
                    1 => unit.trim_end_matches('s'),
                    _ => unit,
                };
                let percent = (100 * done).checked_div(all).unwrap_or_default().min(100);
                format!("{phase}: {done} of {all} {unit}, {percent}%")
            }
        }
    }

    /// The whole line of a progress bar. `run`: seconds until the run ends, if that is known.
    pub fn line(&self, run: Option<f64>) -> String {
        self.count() + &self.times(run)
    }

    /// The end of the line: the time that has passed, and the time that is left.
    pub fn times(&self, run: Option<f64>) -> String {
        let seconds = self.seconds.floor();
        let elapsed = if seconds < 60.0 {
            format!("{seconds} s")
        } else {
            duration(seconds)
        };
        let mut line = format!(", {elapsed} elapsed");
        match (self.seconds_left, run) {
            (Some(left), Some(run)) if (run - left).abs() > 1.0 => {
                let (left, run) = (rough(left), rough(run));
                line += &format!(", about {left} left; the run: about {run}");
            }
            (Some(left), _) | (None, Some(left)) => {
                line += &format!(", about {} left", rough(left))
            }
            (None, None) => {}
        }
        line
    }

    /// The line in at most `columns` characters. If there is too little room, the end of the phase and its count is
    /// cut, because the times matter more.
    pub fn within(&self, run: Option<f64>, columns: usize) -> String {
        let (count, times) = (self.count(), self.times(run));
        let length = |text: &str| text.chars().count();
        if length(&count) + length(&times) <= columns {
            return count + &times;
        }
        let kept = columns.saturating_sub(length(&times) + 1);
        let count: String = count.chars().take(kept).collect();
        let line = format!("{count}…{times}");
        line.chars().take(columns).collect()
    }

    /// The share that is done, if the total is known.
    pub fn share(&self) -> Option<f64> {
        (self.total > 0).then(|| (self.done as f64 / self.total as f64).min(1.0))
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.line(None))
    }
}

/// Formats an estimated rest in whole seconds, which is never 0: what is not done needs time.
pub fn rough(seconds: f64) -> String {
    let seconds = seconds.max(1.0).round();
    if seconds < 60.0 {
        format!("{seconds} s")
    } else {
        duration(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_phase_count_time_and_rest() {
        let progress = Progress {
            phase: "first evaluation of the student".to_owned(),
            unit: "documents".to_owned(),
            done: 31,
            total: 120,
            seconds: 17.9,
            seconds_left: Some(50.4),
        };
        assert_eq!(
            progress.line(None),
            "first evaluation of the student: 31 of 120 documents, 25%, 17 s elapsed, about 50 s left"
        );
        assert!(
            progress
                .line(Some(545.0))
                .ends_with("about 50 s left; the run: about 9 min 5 s")
        );
        assert!(progress.line(Some(50.9)).ends_with("about 50 s left"));
        let bare = Progress {
            unit: String::new(),
            seconds: 75.0,
            seconds_left: Some(0.01),
            ..progress.clone()
        };
        assert_eq!(
            bare.line(None),
            "first evaluation of the student, 1 min 15 s elapsed, about 1 s left"
        );
        let open = Progress {
            total: 0,
            seconds_left: None,
            ..progress
        };
        assert_eq!(
            open.to_string(),
            "first evaluation of the student: 31 documents, 17 s elapsed"
        );
        assert_eq!(open.share(), None);
        let one = Progress {
            total: 1,
            done: 0,
            ..open
        };
        assert!(one.to_string().contains("0 of 1 document, 0%"), "{one}");
    }
}
