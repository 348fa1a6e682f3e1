//! Reads a JSON Lines file of a run as it grows, and gathers data from its records.

use std::{collections::VecDeque, path::Path};

use ddk_files::{Found, Tail};
use serde::de::DeserializeOwned;

/// Data gathered from a file's records.
pub(super) trait Gather: Default {
    /// A line of the file.
    type Record: DeserializeOwned;

    /// Adds the next record.
    fn add(&mut self, record: Self::Record);
}

/// A file that is read incrementally while it grows.
#[derive(Debug)]
pub(super) struct Part<G> {
    name: &'static str,
    tail: Tail,
    pub(super) gathered: G,
    /// Rises whenever something was read.
    pub(super) revision: u64,
    /// What is wrong with the first invalid line. The line is read once, and stays a problem until the file is read
    /// from the start again.
    bad_line: Option<String>,
}

impl<G: Gather> Part<G> {
    pub(super) fn of(folder: &Path, name: &'static str) -> Self {
        Self {
            name,
            tail: Tail::new(folder.join(name)),
            gathered: G::default(),
            revision: 0,
            bad_line: None,
        }
    }

    /// Reads what is new, or the whole file if it was truncated. Returns what is wrong with the file.
    pub(super) fn refresh(&mut self) -> Option<String> {
        let mut is_new = false;
        let read = self.tail.read(|found| {
            is_new = true;
            match found {
                Found::Anew => (self.gathered, self.bad_line) = (G::default(), None),
                Found::Line(line) => match serde_json::from_slice(line) {
                    Ok(record) => self.gathered.add(record),
                    Err(error) => {
                        let problem = || format!("a line is not a valid record: {error}");
                        self.bad_line.get_or_insert_with(problem);
                    }
                },
            }
        });
        self.revision += u64::from(is_new);
        let problem = read.err().map(|error| error.to_string());
        let problem = problem.or_else(|| self.bad_line.clone());
        problem.map(|problem| format!("{}: {problem}", self.name))
    }
}

/// Adds to a list of the last `at_most` items.
pub(super) fn keep<T>(list: &mut VecDeque<T>, item: T, at_most: usize) {
    if list.len() >= at_most {
        list.pop_front();
    }
    list.push_back(item);
}

/// The number, if it is finite.
pub(super) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}
