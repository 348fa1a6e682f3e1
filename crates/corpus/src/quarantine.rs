//! Counts and lists the unusable records of a domain.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{CorpusError, FileFormat, format::decide};

/// The list of a domain's unusable records, in its prepared folder.
pub const QUARANTINE_FILE: &str = "quarantine.jsonl";
/// Maximum number of unusable records listed per file. All of them are counted.
pub const QUARANTINED_PER_FILE: usize = 100;
/// Number of records after which reading stops if all were unusable and the number of remaining records is unknown.
const ALL_BAD: u64 = 10_000;
/// Maximum number of fields that an error names.
const FIELDS: usize = 12;

/// A line of `quarantine.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The domain.
    pub domain: String,
    /// The source.
    pub file: PathBuf,
    /// The line, from 1. In files whose records are not lines, the number of the record.
    pub line: u64,
    /// Why the record is unusable.
    pub reason: String,
}

impl Quarantined {
    /// Where the record is in its file, such as `line 7`.
    pub fn place(&self) -> String {
        let format = decide(&self.file, None).map(|format| format.records);
        let what = match format {
            Ok(FileFormat::Json | FileFormat::Parquet | FileFormat::Arrow) => "record",
            _ => "line",
        };
        format!("{what} {}", self.line)
    }
}

/// Why a record is unusable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable {
    pub(crate) reason: String,
    /// The fields of the record, if it lacks the required one.
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

/// Counts a domain's unusable records and keeps the first ones of each file. Its memory use does not grow with their
/// number.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    pub(crate) list: Vec<Quarantined>,
    pub(crate) bad: u64,
    pub(crate) records: u64,
    /// Bytes of all files.
    bytes: u64,
    /// Bytes of the files that could not be read to their end. The number of records lost in them is unknown.
    damaged_bytes: u64,
    /// The place where the first such file could not be read.
    damaged: Option<Quarantined>,
    /// Number of bad records in the current file, and the index in the list of its first one.
    current: (u64, usize),
    /// The same for the file with the most bad records.
    worst: (u64, usize),
    /// The fields of records that lack the required one.
    fields: Vec<String>,
}

impl Quarantine {
    /// Starts with no records. `bytes`: those of all files.
    pub(crate) fn of(bytes: u64) -> Self {
        Self {
            bytes,
            ..Self::default()
        }
    }

    /// Starts the next file.
    pub(crate) fn begin_file(&mut self) {
        self.current = (0, self.list.len());
    }

    /// Adds an unusable record. `lost`: bytes of its file, if the rest of the file cannot be read.
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

    /// Whether too much is lost already, even if all remaining records are good. `more`: returns the maximum number
    /// of remaining records; `None` if unknown.
    pub(crate) fn is_hopeless(&self, limit: f64, more: impl FnOnce() -> Option<u64>) -> bool {
        let all_bad = self.bad == self.records && self.records >= ALL_BAD;
        let whatever_follows = || more().map_or(all_bad, |more| self.too_many_bad(limit, more));
        self.too_much_damaged(limit) || (self.too_many_bad(limit, 0) && whatever_follows())
    }

    fn too_many_bad(&self, limit: f64, more: u64) -> bool {
        self.bad as f64 > limit * (self.records.saturating_add(more)) as f64
    }

    fn too_much_damaged(&self, limit: f64) -> bool {
        self.damaged_bytes as f64 > limit * self.bytes as f64
    }

    /// Fails if more than `limit` of the records are bad, and names the source with the most of them. Also fails if
    /// more than `limit` of the bytes are in files that are cut or damaged. `whole`: whether all files were read.
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
                // If most records are usable, the configured field is the right one.
                fields: if 2 * self.bad > self.records {
                    self.fields.clone()
                } else {
                    Vec::new()
                },
            }),
            _ => Ok(()),
        }
    }
}
