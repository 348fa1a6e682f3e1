//! Records that cannot be used.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::CorpusError;

/// The list of a domain's unusable records, in its prepared folder.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";
/// Unusable records of a file that are listed. All are counted.
pub const QUARANTINED_PER_FILE: usize = 100;
/// Records after which a domain is given up if all were unusable and nobody knows how many follow.
const ALL_BAD: u64 = 10_000;
/// Fields that an error names at most.
const FIELDS: usize = 12;

/// A line of `quarantine.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The domain.
    pub domain: String,
    /// The source.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
    /// Why it cannot be used.
    pub reason: String,
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) reason: String,
    /// The fields that it has, if it lacks the one asked for.
    pub(crate) fields: Vec<String>,
}

impl From<String> for Unusable {
    fn from(reason: String) -> Self {
        Self {
            reason,
            fields: Vec::new(),
        }
    }
}

/// Counts a domain's unusable records and keeps the first of each file. Its memory does not grow with their number.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    pub(crate) list: Vec<Quarantined>,
    pub(crate) bad: u64,
    pub(crate) records: u64,
    /// Of all files.
    pub(crate) bytes: u64,
    /// Of the files that could not be read to their end: how many records are lost there nobody knows.
    pub(crate) damaged_bytes: u64,
    /// The first such place.
    damaged: Option<Quarantined>,
    /// Bad records of the file that is being read, and where its first is in the list.
    current: (u64, usize),
    /// The same of the file with most of them.
    worst: (u64, usize),
    /// The fields of records that lack the one asked for.
    fields: Vec<String>,
}

impl Quarantine {
    /// The next records are of another file.
    pub(crate) fn begin_file(&mut self) {
        self.current = (0, self.list.len());
    }

    /// Takes a record that cannot be used. `lost`: bytes of its file, if nothing of it can be read from here on.
    pub(crate) fn add(
        &mut self,
        domain: &str,
        file: &Path,
        line: u64,
        unusable: Unusable,
        lost: Option<u64>,
    ) {
        let (bad, _) = self.current;
        self.bad += 1;
        self.current.0 += 1;
        if self.current.0 > self.worst.0 {
            self.worst = self.current;
        }
        if bad >= QUARANTINED_PER_FILE as u64 && lost.is_none() {
            return;
        }
        for field in unusable.fields {
            if self.fields.len() < FIELDS && !self.fields.contains(&field) {
                self.fields.push(field);
            }
        }
        let entry = Quarantined {
            domain: domain.to_owned(),
            file: file.to_owned(),
            line,
            reason: unusable.reason,
        };
        if let Some(bytes) = lost {
            self.damaged_bytes += bytes;
            self.damaged.get_or_insert_with(|| entry.clone());
        }
        if bad < QUARANTINED_PER_FILE as u64 {
            self.list.push(entry);
        }
    }

    /// Whether too much is lost already, however good all that follows is. `more`: at most so many records
    /// follow; `None` if nobody knows.
    pub(crate) fn is_hopeless(&self, limit: f64, more: impl FnOnce() -> Option<u64>) -> bool {
        if self.too_much_damaged(limit) {
            return true;
        }
        if !self.too_many_bad(limit, 0) {
            return false;
        }
        match more() {
            Some(more) => self.too_many_bad(limit, more),
            None => self.bad == self.records && self.records >= ALL_BAD,
        }
    }

    fn too_many_bad(&self, limit: f64, more: u64) -> bool {
        self.bad as f64 > limit * (self.records.saturating_add(more)) as f64
    }

    fn too_much_damaged(&self, limit: f64) -> bool {
        self.damaged_bytes as f64 > limit * self.bytes as f64
    }

    /// Fails if more than `limit` of the records are bad, and names the source with most of them; and if more
    /// than that of the files' bytes are in files that are cut or damaged. `whole`: whether all files were
    /// read.
    pub(crate) fn check(&self, domain: &str, limit: f64, whole: bool) -> Result<(), CorpusError> {
        if let (true, Some(entry)) = (self.too_much_damaged(limit), &self.damaged) {
            return Err(CorpusError::TooMuchDamaged {
                domain: domain.to_owned(),
                share: self.damaged_bytes as f64 / self.bytes.max(1) as f64,
                limit,
                path: entry.file.clone(),
                line: entry.line,
                reason: entry.reason.clone(),
            });
        }
        match self.list.get(self.worst.1) {
            Some(worst) if self.too_many_bad(limit, 0) => Err(CorpusError::TooManyBad {
                domain: domain.to_owned(),
                bad: self.bad,
                records: self.records,
                whole,
                limit,
                worst: Box::new(worst.clone()),
                fields: self.fields.clone(),
            }),
            _ => Ok(()),
        }
    }
}
