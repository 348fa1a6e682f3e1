//! Changes to a run after its start: `overrides.jsonl`. Together with `config.toml`, it is the plan of the run.
//!
//! A line is on the disk before it applies, and no complete line is ever removed. A killed run therefore repeats the
//! changes at the same steps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{RunFileError, journal::Appended, read};

/// The file of overrides.
pub const OVERRIDES: &str = "overrides.jsonl";

/// Values of settings by dotted key.
pub type Assignments = BTreeMap<String, Value>;

/// Where a change came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The command line of a start.
    #[default]
    CommandLine,
    /// The configuration, edited between two starts.
    Config,
    /// The configuration, read again on SIGHUP.
    Sighup,
    /// `ddk ctl`, over the run's socket.
    Socket,
    /// `POST /api/control`.
    Http,
    /// The run itself, to recover from a failure.
    Recovery,
}

/// A line of `overrides.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Override {
    /// The first step that it applies to. A recovery's line applies to every step from now on.
    pub step: u64,
    /// Where it came from.
    pub source: Source,
    /// New values of settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: Assignments,
    /// Steps whose data is skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_steps: Vec<u64>,
    /// Whether to discard what earlier lines change from `step` on, except recoveries' lines.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discard_later: bool,
    /// The reason, if a recovery made the change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The overrides of a run; may be shared between threads.
#[derive(Debug)]
pub struct Overrides {
    path: PathBuf,
    lines: Mutex<Vec<Override>>,
}

impl Overrides {
    /// Reads the file in a run's folder, if there is one. Removes a torn last line, which never applied.
    ///
    /// # Errors
    /// If the file cannot be read or truncated, or if a line is not an override.
    pub fn open(folder: &Path) -> Result<Self, RunFileError> {
        let path = folder.join(OVERRIDES);
        let mut lines = Vec::new();
        if path.exists() {
            drop(Appended::open(path.clone(), None)?);
            lines = read::lines(&path)?;
        }
        Ok(Self {
            path,
            lines: Mutex::new(lines),
        })
    }

    /// Works like [`Self::open`] for a run that another process writes: changes nothing, and reads nothing until
    /// [`Self::reload`].
    pub fn look(folder: &Path) -> Self {
        Self {
            path: folder.join(OVERRIDES),
            lines: Mutex::default(),
        }
    }

    /// Reads the file again. Ignores a last line without its end, which another process may be writing.
    ///
    /// # Errors
    /// If the file cannot be read, or if a line is not an override.
    pub fn reload(&self) -> Result<(), RunFileError> {
        let io = |error| RunFileError::io("read", &self.path)(error);
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(io)?,
        };
        let whole = text
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let parsed = whole.map(|line| serde_json::from_str(line).map_err(|error| io(error.into())));
        *self.lines.lock() = parsed.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Adds a line that another process has appended.
    pub fn learn(&self, line: Override) {
        self.lines.lock().push(line);
    }

    /// Appends a line. It is on the disk when this returns.
    ///
    /// # Errors
    /// If the line cannot be written. Then it is not in the file and must not apply.
    pub fn append(&self, line: Override) -> Result<(), RunFileError> {
        let error = |error| RunFileError::io("write", &self.path)(error);
        let mut bytes = serde_json::to_vec(&line).map_err(|failed| error(failed.into()))?;
        bytes.push(b'\n');
        let mut lines = self.lines.lock();
        let options = fs::OpenOptions::new().create(true).append(true).clone();
        let mut file = options.open(&self.path).map_err(error)?;
        // Several ranks may run out of memory at the same time. Closing the file unlocks it.
        file.lock().map_err(error)?;
        let length = file.metadata().map_err(error)?.len();
        let written = file.write_all(&bytes).and_then(|()| file.sync_all());
        written
            .map_err(error)
            .and_then(|()| Ok(ddk_files::sync_folder(ddk_files::parent(&self.path))?))
            .inspect_err(|_| drop(file.set_len(length)))?;
        lines.push(line);
        Ok(())
    }

    /// Steps whose data is skipped.
    pub fn skip_steps(&self) -> BTreeSet<u64> {
        let lines = self.lines.lock();
        let skipped = lines.iter().flat_map(|line| &line.skip_steps);
        skipped.copied().collect()
    }

    /// Number of times that steps were skipped because training went wrong.
    pub fn rollbacks(&self) -> u64 {
        let lines = self.lines.lock();
        let skips = lines.iter().filter(|line| !line.skip_steps.is_empty());
        skips.count() as u64
    }

    /// Settings that recoveries have changed.
    pub fn recovered(&self) -> Assignments {
        let lines = self.lines.lock();
        let lines = lines.iter().filter(|line| line.source == Source::Recovery);
        lines.flat_map(|line| line.set.clone()).collect()
    }

    /// Settings that users have changed, as they apply to step `step`.
    pub fn up_to(&self, step: u64) -> Assignments {
        merged(by_step(&self.lines.lock(), |_| true).range(..=step))
    }

    /// Settings whose changes first apply to step `step`.
    pub fn at(&self, step: u64) -> Option<Assignments> {
        let values = by_step(&self.lines.lock(), |_| true).remove(&step);
        values.filter(|values| !values.is_empty())
    }

    /// All changes of settings by users, by the first step that they apply to.
    pub fn by_step(&self) -> BTreeMap<u64, Assignments> {
        let mut steps = by_step(&self.lines.lock(), |_| true);
        steps.retain(|_, values| !values.is_empty());
        steps
    }

    /// The latest values of the settings that edits of the configuration have changed since the start.
    pub fn configured(&self) -> Assignments {
        let of_config = |source| matches!(source, Source::Config | Source::Sighup);
        merged(&by_step(&self.lines.lock(), of_config))
    }
}

/// Users' changes, by the first step that they apply to. A later line replaces earlier values of the same key for the
/// same or a later step.
fn by_step(lines: &[Override], counts: impl Fn(Source) -> bool) -> BTreeMap<u64, Assignments> {
    let mut steps = BTreeMap::<u64, Assignments>::new();
    for line in lines {
        if line.discard_later {
            steps.split_off(&line.step);
        }
        if line.source == Source::Recovery || !counts(line.source) {
            continue;
        }
        for (_, later) in steps.range_mut(line.step..) {
            later.retain(|key, _| !line.set.contains_key(key));
        }
        let here = steps.entry(line.step).or_default();
        here.extend(line.set.clone());
    }
    steps
}

fn merged<'a>(steps: impl IntoIterator<Item = (&'a u64, &'a Assignments)>) -> Assignments {
    let steps = steps.into_iter();
    steps.flat_map(|(_, values)| values.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(step: u64, source: Source, lr: f64) -> Override {
        Override {
            step,
            source,
            set: [("optimizer.lr".to_owned(), lr.into())].into(),
            ..Override::default()
        }
    }

    fn lr(values: &Assignments) -> Option<f64> {
        values.get("optimizer.lr").and_then(Value::as_f64)
    }

    #[test]
    fn a_change_applies_from_its_step_and_the_last_word_counts() {
        let folder = tempfile::tempdir().unwrap();
        let overrides = Overrides::open(folder.path()).unwrap();
        for line in [
            set(5, Source::Socket, 0.5),
            set(9, Source::Sighup, 0.25),
            // After a kill, the run is at step 7 again, and the user chooses another value.
            set(7, Source::Http, 0.125),
        ] {
            overrides.append(line).unwrap();
        }
        let overrides = Overrides::open(folder.path()).unwrap();
        let of = |step| lr(&overrides.up_to(step));
        assert_eq!(
            [of(4), of(5), of(6), of(7), of(10)],
            [None, Some(0.5), Some(0.5), Some(0.125), Some(0.125)]
        );
        assert_eq!(overrides.at(7).as_ref().and_then(lr), Some(0.125));
        assert_eq!(overrides.at(9), None);
        assert_eq!(lr(&overrides.configured()), Some(0.25));
        let steps: Vec<u64> = overrides.by_step().into_keys().collect();
        assert_eq!(steps, [5, 7]);
    }

    #[test]
    fn going_back_discards_what_was_changed_later_but_no_recovery() {
        let folder = tempfile::tempdir().unwrap();
        let overrides = Overrides::open(folder.path()).unwrap();
        let recovery = Override {
            skip_steps: vec![6, 7],
            ..set(4, Source::Recovery, 0.1)
        };
        let back = Override {
            step: 5,
            discard_later: true,
            ..Override::default()
        };
        for line in [
            set(3, Source::Socket, 0.5),
            set(5, Source::Config, 0.25),
            recovery,
            back,
        ] {
            overrides.append(line).unwrap();
        }
        assert_eq!(lr(&overrides.up_to(100)), Some(0.5));
        assert_eq!(overrides.configured(), Assignments::new());
        assert_eq!(lr(&overrides.recovered()), Some(0.1));
        assert_eq!(
            (overrides.skip_steps(), overrides.rollbacks()),
            ([6, 7].into(), 1)
        );
    }

    #[test]
    fn a_torn_line_never_applied_and_numbers_keep_their_bits() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OVERRIDES);
        let overrides = Overrides::open(folder.path()).unwrap();
        overrides.append(set(1, Source::Socket, 0.1 + 0.2)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"step\":1,\"source\":\"socket\",\"set\":{\"optimizer.lr\":0.30000000000000004}}\n"
        );
        std::fs::write(&path, text + r#"{"step":2,"source":"so"#).unwrap();
        let overrides = Overrides::open(folder.path()).unwrap();
        assert_eq!(lr(&overrides.up_to(9)), Some(0.1 + 0.2));
        overrides.append(set(2, Source::Http, 1.0)).unwrap();
        assert_eq!(
            lr(&Overrides::open(folder.path()).unwrap().up_to(9)),
            Some(1.0)
        );
    }
}
