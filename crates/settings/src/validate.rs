//! From what was written to what the program uses: everything present, everything in range.

mod data;
mod models;
mod running;

use std::{collections::BTreeMap, fmt::Display, ops::RangeBounds};

use crate::{
    ExportedStudent, Options,
    error::{Error, Problem},
    origin::Origins,
    settings::{Checkpoint, Domain, Evaluation, Faults, Log, Mixture, Queues, Settings},
};

/// Steps, intervals: more than any run has, and few enough to be multiplied.
const MANY: u64 = 1_000_000_000;
/// Rows, positions, passes, steps of an interval.
const LARGE: u64 = 1_000_000;
/// Three years.
const LONGEST_SECONDS: f64 = 1e8;

/// Gathers mistakes while values are taken out of the options.
struct Checker<'a> {
    origins: &'a Origins,
    problems: Vec<Problem>,
}

pub(crate) fn validate(options: Options, origins: &Origins) -> Result<Settings, Error> {
    let mut checker = Checker {
        origins,
        problems: Vec::new(),
    };
    let settings = checker.settings(options);
    match settings {
        Some(settings) if checker.problems.is_empty() => Ok(settings),
        _ => Err(Error(checker.problems)),
    }
}

impl Checker<'_> {
    fn problem(&mut self, key: &str, message: String) {
        self.problems.push(Problem {
            place: self.origins.of(key).to_string(),
            message,
            suggestion: None,
        });
    }

    /// A value that has to be there.
    fn need<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.problem(key, format!("`{key}` is missing"));
        }
        value
    }

    /// A value that has to be there and in a range.
    fn within<T: PartialOrd + Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        range: impl RangeBounds<T>,
        expected: &str,
    ) -> Option<T> {
        let value = self.need(key, value)?;
        if !range.contains(&value) {
            self.problem(key, format!("`{key}` is {value}, expected {expected}"));
        }
        Some(value)
    }

    /// A value that may be absent, but not out of its range.
    fn optional<T: PartialOrd + Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        range: impl RangeBounds<T>,
        expected: &str,
    ) -> Option<T> {
        value.and_then(|value| self.within(key, Some(value), range, expected))
    }

    fn positive(&mut self, key: &str, value: Option<f64>) -> Option<f64> {
        let value = self.need(key, value)?;
        if !(value.is_finite() && value > 0.0) {
            self.problem(key, format!("`{key}` is {value}, expected a number over 0"));
        }
        Some(value)
    }

    fn not_negative(&mut self, key: &str, value: Option<f64>) -> Option<f64> {
        let value = self.need(key, value)?;
        if !(value.is_finite() && value >= 0.0) {
            self.problem(key, format!("`{key}` is {value}, expected 0 or more"));
        }
        Some(value)
    }

    /// A count of 1 to `most`.
    fn count(&mut self, key: &str, value: Option<u64>, most: u64) -> Option<u64> {
        self.within(key, value, 1..=most, &format!("1 to {most}"))
    }

    /// A count that may be absent.
    fn optional_count(&mut self, key: &str, value: Option<u64>, most: u64) -> Option<u64> {
        value.and_then(|value| self.count(key, Some(value), most))
    }

    /// A span of time, which was checked from below.
    fn not_too_long(&mut self, key: &str, seconds: Option<f64>) {
        if let Some(value) = seconds.filter(|value| *value > LONGEST_SECONDS) {
            self.problem(
                key,
                format!("`{key}` is {value}, expected {LONGEST_SECONDS} at most"),
            );
        }
    }

    fn device(&mut self, key: &str, value: Option<String>) -> Option<String> {
        let value = self.need(key, value)?;
        let number = value.strip_prefix("cuda:").map(str::parse::<usize>);
        if value != "cpu" && !matches!(number, Some(Ok(_))) {
            self.problem(
                key,
                format!("`{key}` is \"{value}\", expected \"cpu\" or \"cuda:0\", \"cuda:1\", …"),
            );
        }
        Some(value)
    }

    fn settings(&mut self, options: Options) -> Option<Settings> {
        let run = self.run(options.run.unwrap_or_default());
        let corpus = self.corpus(options.corpus.unwrap_or_default());
        let domains: BTreeMap<String, Domain> = options
            .domains
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, domain)| Some((name.clone(), self.domain(&name, domain)?)))
            .collect();
        let teacher = self.teacher(options.teacher.unwrap_or_default());
        let student = self.student(options.student.unwrap_or_default());
        let batch = self.batch("batch", options.batch.unwrap_or_default());
        let names: Vec<String> = domains.keys().cloned().collect();
        let mixture = self.mixture(options.mixture.unwrap_or_default(), &names);
        let objective = self.objective(options.objective.unwrap_or_default());
        let queues = options.queues.unwrap_or_default();
        let evaluation = options.evaluation.unwrap_or_default();
        let checkpoint = options.checkpoint.unwrap_or_default();
        let telemetry = self.telemetry(options.telemetry.unwrap_or_default());
        let log = options.log.unwrap_or_default();
        let queues = self.within("queues.depth", queues.depth, 0..=8, "0 to 8");
        let batch_rows = self.within(
            "evaluation.batch_rows",
            evaluation.batch_rows,
            1..,
            "1 or more",
        );
        let evaluation_every = self.optional_count("evaluation.every", evaluation.every, MANY);
        let every = self.within("checkpoint.every", checkpoint.every, 1.., "1 or more");
        let keep = self.within("checkpoint.keep", checkpoint.keep, 1.., "1 or more");
        let keep_every = self.optional(
            "checkpoint.keep_every",
            checkpoint.keep_every,
            1..,
            "1 or more",
        );
        let keep_best = self.need("checkpoint.keep_best", checkpoint.keep_best);
        let guard = self.guard(options.guard.unwrap_or_default());
        let faults = options.faults.unwrap_or_default().plan.unwrap_or_default();
        let line_seconds = self.not_negative("log.line_seconds", log.line_seconds);
        self.not_too_long("log.line_seconds", line_seconds);
        let run = run?;
        let mixture = mixture?;
        let step_rows = batch.as_ref().map_or(1, |batch| batch.rows);
        let rows = mixture.interval.saturating_mul(step_rows);
        let held = !mixture.policy.moves_every_step();
        if held && rows > MANY && step_rows <= LARGE && mixture.interval <= LARGE {
            self.problem(
                "mixture.interval",
                format!("`mixture.interval` times `batch.rows` is {rows}, expected {MANY} at most: an interval's order is held in memory"),
            );
        }
        if !mixture.policy.measures_perplexities() && evaluation_every.is_none() {
            self.nothing_measured("run.stop_ratio", run.stop_ratio.is_some(), &mixture);
            self.nothing_measured("checkpoint.keep_best", keep_best == Some(true), &mixture);
            self.nothing_measured("run.export", run.export == ExportedStudent::Best, &mixture);
        }
        let seed = run.seed;
        let pretrain = options
            .pretrain
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(name, model)| {
                let checked = self.pretrain(&name, model, seed, &names)?;
                Some((name, checked))
            })
            .collect();
        Some(Settings {
            method: options.method,
            run,
            corpus: corpus?,
            domains,
            teacher: teacher?,
            student: student?,
            batch: batch?,
            mixture,
            objective: objective?,
            queues: Queues { depth: queues? },
            evaluation: Evaluation {
                every: evaluation_every,
                batch_rows: batch_rows?,
            },
            checkpoint: Checkpoint {
                every: every?,
                keep: keep?,
                keep_every,
                keep_best: keep_best?,
            },
            guard: guard?,
            faults: Faults { plan: faults },
            telemetry: telemetry?,
            log: Log {
                line_seconds: line_seconds?,
            },
            pretrain,
        })
    }

    /// What goes by perplexities over the run needs a mixture that has them measured.
    fn nothing_measured(&mut self, key: &str, is_set: bool, mixture: &Mixture) {
        if is_set {
            let policy = mixture.policy.name();
            self.problem(
                key,
                format!("`{key}` goes by perplexities during the run, and `mixture.policy` = \"{policy}\" has none measured: set `evaluation.every`"),
            );
        }
    }
}
