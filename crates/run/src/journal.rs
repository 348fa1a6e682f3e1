//! Appends to the JSON Lines files, and truncates them on resume.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{
    RunFileError,
    records::{DrawnLine, EventKind, EventLine, MixtureLine, SampleLine, StepRecord},
    texts::TextLine,
};

/// The file of events.
pub(crate) const EVENTS: &str = "events.jsonl";
/// The file of texts.
const TEXTS: &str = "texts.jsonl";

/// Length of each file in bytes at a step boundary; part of a checkpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    /// `run.jsonl`.
    pub run: u64,
    /// `mixture.jsonl`.
    pub mixture: u64,
    /// `samples.jsonl`; 0 if it is not written.
    pub samples: u64,
    /// `texts.jsonl`; 0 if it is not written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub texts: u64,
}

fn is_zero(length: &u64) -> bool {
    *length == 0
}

/// The run's JSON Lines files, open for appending; may be shared between threads.
#[derive(Debug)]
pub struct Journal {
    /// Not poisoned by a panic: a thread that panicked while appending has at worst left out a line.
    files: Mutex<Files>,
}

#[derive(Debug)]
struct Files {
    /// None if nothing is written.
    run: Option<Appended>,
    mixture: Option<Appended>,
    samples: Option<Appended>,
    /// Opened with its first line, because most runs have none.
    texts: Option<Appended>,
    /// Where that is; none if nothing is written.
    texts_path: Option<PathBuf>,
    events: Option<Appended>,
    /// The last step in a line or an event.
    last_step: u64,
}

impl Journal {
    /// Opens the files of a run's folder and truncates them to `lengths`, which drops the lines written after the
    /// checkpoint. `events.jsonl` loses only a torn last line.
    ///
    /// # Errors
    /// If a file cannot be opened or truncated, or is shorter than `lengths` says.
    pub fn open(folder: &Path, lengths: Lengths, samples: bool) -> Result<Self, RunFileError> {
        let open = |name: &str, length| Appended::open(folder.join(name), length).map(Some);
        let texts = folder.join(TEXTS);
        let files = Files {
            run: open("run.jsonl", Some(lengths.run))?,
            mixture: open("mixture.jsonl", Some(lengths.mixture))?,
            samples: if samples {
                open("samples.jsonl", Some(lengths.samples))?
            } else {
                None
            },
            texts: if texts.exists() || lengths.texts > 0 {
                open(TEXTS, Some(lengths.texts))?
            } else {
                None
            },
            texts_path: Some(texts),
            events: open(EVENTS, None)?,
            last_step: 0,
        };
        Ok(Self {
            files: Mutex::new(files),
        })
    }

    /// A journal that writes nothing, for a process whose run another process records.
    pub fn silent() -> Self {
        let files = Files {
            run: None,
            mixture: None,
            samples: None,
            texts: None,
            texts_path: None,
            events: None,
            last_step: 0,
        };
        Self {
            files: Mutex::new(files),
        }
    }

    /// Appends a step and flushes it at once, because the live page and `tail -f` read the file.
    ///
    /// # Errors
    /// If `run.jsonl` cannot be written.
    pub fn step(&self, line: &StepRecord) -> Result<(), RunFileError> {
        let mut files = self.files.lock();
        files.last_step = line.step;
        append_visibly(&mut files.run, line)
    }

    /// Appends a mixture and flushes it at once, so that readers of the file see it.
    ///
    /// # Errors
    /// If `mixture.jsonl` cannot be written.
    pub fn mixture(&self, line: &MixtureLine) -> Result<(), RunFileError> {
        append_visibly(&mut self.files.lock().mixture, line)
    }

    /// Appends what an interval drew.
    ///
    /// # Errors
    /// If `mixture.jsonl` cannot be written.
    pub fn drawn(&self, line: &DrawnLine) -> Result<(), RunFileError> {
        append_visibly(&mut self.files.lock().mixture, line)
    }

    /// Appends the sequences of a step if samples are traced.
    ///
    /// # Errors
    /// If `samples.jsonl` cannot be written.
    pub fn samples(&self, lines: &[SampleLine]) -> Result<(), RunFileError> {
        let mut files = self.files.lock();
        let Some(samples) = &mut files.samples else {
            return Ok(());
        };
        lines.iter().try_for_each(|line| samples.append(line))
    }

    /// Appends what a model has written and flushes it at once, so that readers of the file see it.
    ///
    /// # Errors
    /// If `texts.jsonl` cannot be written.
    pub fn texts(&self, line: &TextLine) -> Result<(), RunFileError> {
        let mut files = self.files.lock();
        if files.texts.is_none()
            && let Some(path) = files.texts_path.clone()
        {
            files.texts = Some(Appended::open(path, Some(0))?);
        }
        append_visibly(&mut files.texts, line)
    }

    /// Appends an event that happened now.
    ///
    /// # Errors
    /// If `events.jsonl` cannot be written.
    pub fn event(
        &self,
        step: u64,
        kind: EventKind,
        message: &str,
    ) -> Result<EventLine, RunFileError> {
        let line = EventLine::now(step, kind, message);
        let mut files = self.files.lock();
        files.last_step = files.last_step.max(step);
        append_visibly(&mut files.events, &line)?;
        Ok(line)
    }

    /// Appends an event at the last step that was recorded. Logs an event that cannot be written, for example because
    /// the disk is full.
    pub fn note(&self, kind: EventKind, message: &str) -> Option<EventLine> {
        let step = self.files.lock().last_step;
        let event = self.event(step, kind, message);
        let logged = |error: &RunFileError| {
            tracing::error!(%error, %kind, message, "cannot write an event");
        };
        event.inspect_err(logged).ok()
    }

    /// The files' lengths, including lines still in memory; 0 for a file that is not written.
    pub fn lengths(&self) -> Lengths {
        let files = self.files.lock();
        let length = |file: &Option<Appended>| file.as_ref().map_or(0, |file| file.length);
        Lengths {
            run: length(&files.run),
            mixture: length(&files.mixture),
            samples: length(&files.samples),
            texts: length(&files.texts),
        }
    }

    /// Flushes buffered lines to the system, so that other programs see them.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn flush(&self) -> Result<(), RunFileError> {
        self.files.lock().all().try_for_each(Appended::flush)
    }

    /// Makes every line durable. Call this before saving a checkpoint that records the lengths.
    ///
    /// # Errors
    /// If a file cannot be written or synced.
    pub fn sync(&self) -> Result<(), RunFileError> {
        self.files.lock().all().try_for_each(Appended::sync)
    }
}

/// Works like [`record_event`], with the step of the last event.
///
/// # Errors
/// If the file cannot be read or written.
pub fn append_event(folder: &Path, kind: EventKind, message: &str) -> Result<(), RunFileError> {
    let path = folder.join(EVENTS);
    let before = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read.map_err(RunFileError::io("read", &path))?,
    };
    let whole = |line| serde_json::from_str::<EventLine>(line).ok();
    let last = before.lines().rev().find_map(whole);
    record_event(folder, last.map_or(0, |line| line.step), kind, message)
}

/// Appends an event of `step` to a run whose journal is not open. The line is on the disk when this returns.
///
/// # Errors
/// If the file cannot be written.
pub fn record_event(
    folder: &Path,
    step: u64,
    kind: EventKind,
    message: &str,
) -> Result<(), RunFileError> {
    let mut events = Appended::open(folder.join(EVENTS), None)?;
    events.append(&EventLine::now(step, kind, message))?;
    events.sync()
}

impl Files {
    fn all(&mut self) -> impl Iterator<Item = &mut Appended> {
        let Self {
            run,
            mixture,
            samples,
            texts,
            events,
            ..
        } = self;
        [run, mixture, samples, texts, events].into_iter().flatten()
    }
}

/// Appends a line to a file, if it is written, and flushes it at once, so that readers of the file see it.
fn append_visibly(file: &mut Option<Appended>, line: &impl Serialize) -> Result<(), RunFileError> {
    let Some(file) = file else {
        return Ok(());
    };
    file.append(line)?;
    file.flush()
}

/// A file open for appending.
#[derive(Debug)]
pub(crate) struct Appended {
    path: PathBuf,
    out: BufWriter<File>,
    length: u64,
}

impl Appended {
    pub(crate) fn open(path: PathBuf, cut_to: Option<u64>) -> Result<Self, RunFileError> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(&path)
            .map_err(RunFileError::io("open", &path))?;
        let found = file
            .metadata()
            .map_err(RunFileError::io("read", &path))?
            .len();
        let length = match cut_to {
            Some(expected) if expected > found => {
                return Err(RunFileError::Shrunk {
                    path,
                    expected,
                    found,
                });
            }
            Some(length) => length,
            // Without a torn last line.
            None => {
                let text = fs::read(&path).map_err(RunFileError::io("read", &path))?;
                let end = text.iter().rposition(|byte| *byte == b'\n');
                end.map_or(0, |end| end as u64 + 1)
            }
        };
        if length != found {
            file.set_len(length)
                .map_err(RunFileError::io("cut", &path))?;
        }
        Ok(Self {
            path,
            out: BufWriter::new(file),
            length,
        })
    }

    pub(crate) fn append(&mut self, line: &impl Serialize) -> Result<(), RunFileError> {
        let mut bytes = serde_json::to_vec(line)
            .map_err(io::Error::from)
            .map_err(RunFileError::io("write", &self.path))?;
        bytes.push(b'\n');
        self.out
            .write_all(&bytes)
            .map_err(RunFileError::io("write", &self.path))?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), RunFileError> {
        self.out
            .flush()
            .map_err(RunFileError::io("write", &self.path))
    }

    pub(crate) fn sync(&mut self) -> Result<(), RunFileError> {
        self.flush()?;
        self.out
            .get_ref()
            .sync_all()
            .map_err(RunFileError::io("sync", &self.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{Drawn, SampleSpan};
    use std::collections::BTreeMap;

    fn drawn(interval: u64) -> DrawnLine {
        let drawn = Drawn {
            sequences: 3,
            tokens: 96,
            epochs: 0.5,
        };
        DrawnLine {
            interval,
            drawn: BTreeMap::from([("prose".to_owned(), drawn)]),
        }
    }

    fn sample(step: u64) -> SampleLine {
        SampleLine {
            step,
            sequence: 7,
            domain: "prose".to_owned(),
            interval: 0,
            epoch: 0,
            spans: vec![SampleSpan {
                document: 1,
                offset: 0,
                tokens: 32,
            }],
        }
    }

    #[test]
    fn lines_after_the_checkpoint_are_cut_and_torn_ones_too() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), Lengths::default(), true).unwrap();
        journal.drawn(&drawn(0)).unwrap();
        journal.samples(&[sample(1), sample(1)]).unwrap();
        let saved = journal.lengths();
        journal.sync().unwrap();
        journal.drawn(&drawn(1)).unwrap();
        journal.samples(&[sample(2)]).unwrap();
        journal.event(2, EventKind::Saved, "step 2").unwrap();
        drop(journal);
        let events = folder.path().join("events.jsonl");
        let torn = fs::read_to_string(&events).unwrap() + r#"{"time":1"#;
        fs::write(&events, torn).unwrap();

        let journal = Journal::open(folder.path(), saved, true).unwrap();
        assert_eq!(journal.lengths(), saved);
        journal.drawn(&drawn(1)).unwrap();
        journal.event(1, EventKind::Resumed, "from step 1").unwrap();
        journal.flush().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("mixture.jsonl").lines().count(), 2);
        assert_eq!(read("samples.jsonl").lines().count(), 2);
        let kinds: Vec<EventKind> = read("events.jsonl")
            .lines()
            .map(|line| serde_json::from_str::<EventLine>(line).unwrap().kind)
            .collect();
        assert_eq!(kinds, [EventKind::Saved, EventKind::Resumed]);
    }

    #[test]
    fn a_silent_journal_writes_nothing() {
        let journal = Journal::silent();
        journal.drawn(&drawn(0)).unwrap();
        journal.samples(&[sample(1)]).unwrap();
        let event = journal.event(3, EventKind::Saved, "step 3").unwrap();
        assert_eq!((event.step, event.message.as_str()), (3, "step 3"));
        assert_eq!(journal.note(EventKind::Saved, "again").unwrap().step, 3);
        journal.sync().unwrap();
        assert_eq!(journal.lengths(), Lengths::default());
    }

    #[test]
    fn an_event_without_a_journal_follows_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        append_event(folder.path(), EventKind::Stopped, "before the first step").unwrap();
        let journal = Journal::open(folder.path(), Lengths::default(), false).unwrap();
        journal.event(8, EventKind::Saved, "step 8").unwrap();
        drop(journal);
        let events = folder.path().join("events.jsonl");
        let torn = fs::read_to_string(&events).unwrap() + r#"{"time":1"#;
        fs::write(&events, torn).unwrap();
        append_event(folder.path(), EventKind::Stopped, "at the end").unwrap();
        let steps: Vec<(u64, String)> = fs::read_to_string(&events)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<EventLine>(line).unwrap())
            .map(|line| (line.step, line.message))
            .collect();
        let expected = [
            (0, "before the first step"),
            (8, "step 8"),
            (8, "at the end"),
        ];
        assert_eq!(steps, expected.map(|(step, text)| (step, text.to_owned())));
    }

    #[test]
    fn a_file_that_lost_saved_lines_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let lengths = Lengths {
            run: 10,
            ..Lengths::default()
        };
        let error = Journal::open(folder.path(), lengths, false).unwrap_err();
        assert!(
            error.to_string().contains("run.jsonl has 0 bytes"),
            "{error}"
        );
    }
}
